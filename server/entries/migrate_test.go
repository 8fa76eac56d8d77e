// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// TestMoveIDs: what an older server stored is moved, in however many steps; the inventory stays; and an entry's end does
// not touch a TPM of the same name.
func TestMoveIDs(t *testing.T) {
	s := storetest.Open(t)
	want := map[string]string{"i/tpm": `{"label":"a machine"}`}
	puts := []store.KV{{Key: "i/tpm", Value: []byte(want["i/tpm"])}}
	for n := range store.MaxOps + 1 {
		puts = append(puts, store.KV{Key: fmt.Sprintf("i/%d", n), Value: fmt.Appendf(nil, "e/%d", n)})
		want[fmt.Sprintf("id/%d", n)] = fmt.Sprintf("e/%d", n)
	}
	for len(puts) > 0 {
		n := min(len(puts), store.MaxOps)
		if _, err := s.Commit(t.Context(), store.Txn{Puts: puts[:n]}); err != nil {
			t.Fatal(err)
		}
		puts = puts[n:]
	}
	stored := func() map[string]string {
		all := map[string]string{}
		for _, prefix := range []string{"i/", "id/"} {
			kvs, _, err := s.Snapshot(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			for _, kv := range kvs {
				all[kv.Key] = string(kv.Value)
			}
		}
		return all
	}
	for range 2 { // again is nothing
		if err := entries.MoveIDs(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if got := stored(); !maps.Equal(got, want) {
			t.Fatalf("%d keys, want %d", len(got), len(want))
		}
	}
	r := open(t, s)
	create(t, r, &selectors.Entry{ID: "tpm", SPIFFEID: id("/w"), ParentID: id("/n"), Selectors: []selectors.Selector{{Type: "unix", Value: "uid:1"}}})
	if res := r.Delete(t.Context(), []string{"tpm"}); res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	if got := stored(); !maps.Equal(got, want) {
		t.Errorf("%d keys are left, want %d", len(got), len(want))
	}
}
