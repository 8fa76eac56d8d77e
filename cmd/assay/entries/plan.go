// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/assay/cli"
	entrypb "github.com/assay-id/assay/proto/entry"
)

// The verbs of a change, as diff prints them, and what apply prints once it is done.
const (
	create    = "create"
	update    = "update"
	remove    = "delete"
	unchanged = "unchanged"
	stale     = "stale"   // made by a former apply and no longer in the file, without --prune
	differs   = "differs" // exists otherwise, without --update
	failed    = "failed"
)

// change is one line of a plan.
type change struct {
	Action   string       `json:"action"`
	SPIFFEID string       `json:"spiffe_id"`
	EntryID  string       `json:"entry_id"`
	Fields   []difference `json:"fields,omitempty"`
	Error    string       `json:"error,omitempty"`

	want *types.Entry
}

// difference is a field before and after.
type difference struct {
	Field string `json:"field"`
	From  string `json:"from"`
	To    string `json:"to"`
}

// key is what makes two entries the same registration, as the server sees it.
func key(e *types.Entry) string {
	return cli.IDText(e.ParentId) + "\n" + cli.IDText(e.SpiffeId) + "\n" + strings.Join(selectorTexts(e), "\n")
}

// selectorTexts are the selectors as a set.
func selectorTexts(e *types.Entry) []string {
	var out []string
	for _, s := range e.Selectors {
		out = append(out, s.Type+":"+s.Value)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// owned is the prefix of the ids of entries that apply made from a set. The id is how apply knows its own
// again, whatever became of them: no other field may be used for it without telling workloads or agents.
func owned(set string) string { return "apply." + set + "." }

// ownedID is the id of an entry of a set; the same each time.
func ownedID(set string, e *types.Entry) string {
	sum := sha256.Sum256([]byte(key(e)))
	return owned(set) + hex.EncodeToString(sum[:16])
}

// fields are what a file says of an entry, in the form in which they are compared.
func fields(e *types.Entry) []difference {
	seconds := func(n int32) string { return (time.Duration(n) * time.Second).String() }
	var federates []string
	for _, td := range e.FederatesWith {
		federates = append(federates, strings.TrimPrefix(td, "spiffe://"))
	}
	slices.Sort(federates)
	a := e.AdditionalAttributes
	out := []difference{
		{Field: "spiffe_id", To: cli.IDText(e.SpiffeId)}, {Field: "parent", To: cli.IDText(e.ParentId)}, {Field: "selectors", To: strings.Join(selectorTexts(e), " ")},
		{Field: "x509_ttl", To: seconds(e.X509SvidTtl)}, {Field: "jwt_ttl", To: seconds(e.JwtSvidTtl)}, {Field: "dns", To: strings.Join(e.DnsNames, " ")},
		{Field: "federates_with", To: strings.Join(federates, " ")}, {Field: "hint", To: e.Hint}, {Field: "expires_at", To: cli.TimeText(e.ExpiresAt)},
	}
	for _, f := range []struct {
		name string
		on   bool
	}{{"admin", e.Admin}, {"downstream", e.Downstream}, {"store_svid", e.StoreSvid}, {"disable_x509_svid_prefetch", a.GetDisableX509SvidPrefetch()}, {"jwt_svid_include_jti", a.GetJwtSvidIncludeJti()}} {
		out = append(out, difference{Field: f.name, To: fmt.Sprint(f.on)})
	}
	return append(out, optionFields(optionsOf(e))...)
}

func optionFields(o *entrypb.Options) []difference {
	return []difference{{Field: "per_process", To: fmt.Sprint(o.GetPerProcess())}, {Field: "prefetch", To: fmt.Sprint(o.GetPrefetch())},
		{Field: "key_type", To: keyTypeText(o.GetKeyType())}, {Field: "grace", To: (time.Duration(o.GetGrace()) * time.Second).String()}}
}

// compare returns the fields in which have is not what want says. Who says nothing of our options, as SPIRE's files, leaves them.
func compare(have, want *types.Entry) (out []difference) {
	before, after := fields(have), fields(want)
	if optionsOf(want) == nil {
		n := len(after) - len(optionFields(nil))
		before, after = before[:n], after[:n]
	}
	for i, f := range after {
		if f.From = before[i].To; f.From != f.To {
			out = append(out, f)
		}
	}
	return out
}

// planApply says what makes the server's entries what the file's are. Entries that no apply of this set made are left alone,
// unless the file has one like them: that one is updated, and stays whose it is.
func planApply(set string, want, have []*types.Entry, prune bool) ([]change, error) {
	for _, e := range want {
		if e.Id == "" {
			e.Id = ownedID(set, e)
		}
	}
	changes, kept, err := match(want, have)
	if err != nil {
		return nil, err
	}
	for _, e := range have {
		if !strings.HasPrefix(e.Id, owned(set)) || kept[e.Id] {
			continue
		}
		action := stale
		if prune {
			action = remove
		}
		changes = append(changes, change{Action: action, SPIFFEID: cli.IDText(e.SpiffeId), EntryID: e.Id})
	}
	return changes, nil
}

// match finds for each wanted entry the one that is there, by its id or as the same registration; kept are their ids.
func match(want, have []*types.Entry) (changes []change, kept map[string]bool, err error) {
	byID, byKey := map[string]*types.Entry{}, map[string]*types.Entry{}
	for _, e := range have {
		byID[e.Id], byKey[key(e)] = e, e
	}
	kept = map[string]bool{}
	twice := map[string]bool{}
	for _, e := range want {
		if k := key(e); twice[k] {
			return nil, nil, fmt.Errorf("%s is there twice with the same parent and selectors; leave one out", cli.IDText(e.SpiffeId))
		} else {
			twice[k] = true
		}
		c := change{Action: create, SPIFFEID: cli.IDText(e.SpiffeId), EntryID: e.Id, want: e}
		old := byID[e.Id]
		if old == nil {
			old = byKey[key(e)]
		}
		if old != nil {
			if kept[old.Id] {
				return nil, nil, fmt.Errorf("two entries are for %s with the id %s; give one of them another", c.SPIFFEID, old.Id)
			}
			kept[old.Id] = true
			c.want = proto.CloneOf(e)
			c.want.Id, c.EntryID, c.Action, c.Fields = old.Id, old.Id, update, compare(old, e)
			if len(c.Fields) == 0 {
				c.Action = unchanged
			}
		}
		changes = append(changes, c)
	}
	return changes, kept, nil
}

// planImport adds what is not there, and with overwrite updates what is.
func planImport(want, have []*types.Entry, overwrite bool) ([]change, error) {
	changes, _, err := match(want, have)
	for i := range changes {
		if changes[i].Action == update && !overwrite {
			changes[i].Action = differs
		}
	}
	return changes, err
}
