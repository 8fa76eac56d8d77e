// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// grow writes until it is refused, and returns the keys and the refusal.
func grow(t *testing.T, s *store.Store, prefix string, essential bool) (keys []string, refusal error) {
	t.Helper()
	value := bytes.Repeat([]byte("v"), 256<<10)
	for i := range 4000 {
		key := fmt.Sprintf("%s%04d", prefix, i)
		if _, err := s.Commit(t.Context(), store.Txn{Essential: essential, Puts: []store.KV{{Key: key, Value: value}}}); err != nil {
			return keys, err
		}
		keys = append(keys, key)
	}
	t.Fatal("never refused")
	return nil, nil
}

// TestQuota: growth is refused in words, deletes that write are not, and what they free is
// given back without anybody's help. So it is when etcd itself has raised its alarm.
func TestQuota(t *testing.T) {
	s := storetest.OpenConfig(t, store.Config{Dir: t.TempDir(), Quota: 48 << 20})
	for _, essential := range []bool{false, true} {
		keys, err := grow(t, s, "e/", essential)
		if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "delete entries (this still works)") {
			t.Fatalf("essential %v: refused with %v", essential, err)
		}
		waitFor(t, "the sentence in Health", func() bool { return strings.Contains(s.Health().Reason, "of 48 MiB") })
		if h := s.Health(); !h.Ready || h.DatabaseBytes == 0 || h.QuotaBytes != 48<<20 {
			t.Errorf("Health = %+v", h)
		}
		txn := store.Txn{Deletes: keys}
		if !essential { // with a guard, as entries have it; etcd's own alarm refuses every put
			txn.Puts = []store.KV{{Key: "g/guard"}}
		}
		if _, err := s.Commit(t.Context(), txn); err != nil {
			t.Fatalf("essential %v: a delete: %v", essential, err)
		}
		waitFor(t, "room", func() bool {
			h := s.Health()
			return h.Reason == "" && h.DatabaseBytes < 12<<20
		})
		put(t, s, "e/again", "x")
	}
}
