// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/protojson"

	entrypb "github.com/assay-id/assay/proto/entry"
	"github.com/assay-id/assay/selectors"
)

// optionsOf are what the entry says beyond SPIRE's; nil if it says nothing. What can not be read was not written by us.
func optionsOf(e *types.Entry) *entrypb.Options {
	o, err := entrypb.Get(e)
	if err != nil {
		return nil
	}
	return o
}

func parseKeyType(name string) (entrypb.KeyType, error) {
	k, err := selectors.ParseKeyType(name)
	return entrypb.KeyType(k), err
}

func keyTypeText(k entrypb.KeyType) string { return selectors.KeyType(k).String() }

func parseGrace(text string) (seconds uint32, err error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("grace %q: write it as 10m or 1h", text)
	}
	if err := (selectors.EntryOptions{Grace: d}).Validate(); err != nil {
		return 0, err
	}
	return uint32(d / time.Second), nil
}

// optionsName is the member of an entry in JSON that has our options; protojson knows SPIRE's fields only.
const optionsName = "options"

var optionsJSON = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}

// withOptions are the entries in JSON as `assay entry` prints and reads them.
func withOptions(es []*types.Entry) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(es))
	for _, e := range es {
		item, err := optionsJSON.Marshal(e)
		if err != nil {
			return nil, err
		}
		if o := optionsOf(e); o != nil {
			options, err := optionsJSON.Marshal(o)
			if err != nil {
				return nil, err
			}
			item = fmt.Appendf(item[:len(item)-1], ",%q:%s}", optionsName, options)
		}
		out = append(out, item)
	}
	return out, nil
}

// takeOptions takes them out of an entry in JSON; nil if there are none.
func takeOptions(item json.RawMessage) (rest json.RawMessage, _ *entrypb.Options, err error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(item, &members); err != nil {
		return nil, nil, err
	}
	text, ok := members[optionsName]
	if !ok {
		return item, nil, nil
	}
	o := &entrypb.Options{}
	if err := protojson.Unmarshal(text, o); err != nil {
		return nil, nil, fmt.Errorf("options: %w", err)
	}
	delete(members, optionsName)
	rest, err = json.Marshal(members)
	return rest, o, err
}
