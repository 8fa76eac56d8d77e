// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"fmt"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// field is Beyond's number in spire.api.types.Entry.
const field = 74017

// Get returns what the entry says beyond SPIRE's fields; nil is nothing.
func Get(e *types.Entry) (*Options, error) {
	unknown := e.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil, nil
	}
	var b Beyond
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(unknown, &b); err != nil {
		return nil, fmt.Errorf("read the entry's options: %w", err)
	}
	return b.Options, nil
}

// Set writes them in the place of those that there are; nil removes them. Other fields that are not known stay.
func Set(e *types.Entry, o *Options) error {
	var rest []byte
	for unknown := []byte(e.ProtoReflect().GetUnknown()); len(unknown) > 0; {
		number, _, n := protowire.ConsumeField(unknown)
		if n < 0 {
			return fmt.Errorf("read the entry's unknown fields: %w", protowire.ParseError(n))
		}
		if number != field {
			rest = append(rest, unknown[:n]...)
		}
		unknown = unknown[n:]
	}
	if o != nil {
		b, err := proto.Marshal(&Beyond{Options: o})
		if err != nil {
			return fmt.Errorf("write the entry's options: %w", err)
		}
		rest = append(rest, b...)
	}
	e.ProtoReflect().SetUnknown(rest)
	return nil
}
