// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	entrypb "github.com/assay-id/assay/proto/entry"
	"github.com/assay-id/assay/selectors"
)

// SPIRE's clients, who do not know the options, keep them or leave them out, and change nothing in both cases.
func TestOptionsInSPIREsEntry(t *testing.T) {
	options := selectors.EntryOptions{PerProcess: true, Prefetch: true, KeyType: selectors.KeyECP384, Grace: 90 * time.Second}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	e := &selectors.Entry{ID: "x", SPIFFEID: spiffeid.RequireFromPath(td, "/x"), ParentID: spiffeid.RequireFromPath(td, "/p"),
		Selectors: []selectors.Selector{{Type: "unix", Value: "path:/x"}}, Options: options}
	raw, err := proto.Marshal(Entry(e, nil))
	if err != nil {
		t.Fatal(err)
	}
	kept := &types.Entry{}
	if err := proto.Unmarshal(raw, kept); err != nil {
		t.Fatal(err)
	}
	read := &selectors.Entry{}
	if err := SetEntry(read, kept, nil); err != nil || read.Options != options {
		t.Errorf("read %+v, %v", read.Options, err)
	}
	lost := proto.CloneOf(kept)
	lost.ProtoReflect().SetUnknown(nil)
	if err := SetEntry(read, lost, nil); err != nil || read.Options != options {
		t.Errorf("an update without options left %+v, %v", read.Options, err)
	}
	set := func(o *entrypb.Options) error {
		p := proto.CloneOf(kept)
		if err := entrypb.Set(p, o); err != nil {
			t.Fatal(err)
		}
		return SetEntry(read, p, &types.EntryMask{AdditionalAttributes: true})
	}
	if err := set(&entrypb.Options{}); err != nil || read.Options != (selectors.EntryOptions{}) {
		t.Errorf("taken away: %+v, %v", read.Options, err)
	}
	for _, bad := range []*entrypb.Options{{KeyType: 5}, {KeyType: -1}, {KeyType: 256}, {Grace: 1 << 31}} {
		if set(bad) == nil {
			t.Errorf("taken: %v", bad)
		}
	}
	p := Entry(e, &types.EntryMask{SpiffeId: true})
	if o, err := entrypb.Get(p); err != nil || o != nil {
		t.Errorf("a mask without attributes shows %v, %v", o, err)
	}
}
