// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"testing"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// TestCommitEach: a transaction in the way of nothing is written although its neighbours are not.
func TestCommitEach(t *testing.T) {
	s := storetest.Open(t)
	first := put(t, s, "g/1", "")
	last := put(t, s, "g/2", "")
	txn := func(guard, key string, at int64) store.Txn {
		return store.Txn{Compares: []store.Compare{store.NotAfter(guard, at)}, Puts: []store.KV{{Key: guard}, {Key: key, Value: []byte("x")}}}
	}
	huge := store.Txn{Deletes: make([]string, store.MaxOps+1)}
	revision, verdicts, err := s.CommitEach(t.Context(), nil, []store.Txn{txn("g/1", "e/1", last), huge, txn("g/2", "e/2", first), txn("g/3", "e/3", first)})
	if err != nil || revision != last+1 {
		t.Fatalf("CommitEach at %d, %v; want %d", revision, err, last+1)
	}
	var conflict *store.ConflictError
	if verdicts[0] != nil || verdicts[1] == nil || errors.Is(verdicts[1], store.ErrConflict) || !errors.As(verdicts[2], &conflict) || conflict.Revision != last || verdicts[3] != nil {
		t.Errorf("verdicts %v", verdicts)
	}
	kvs, _, err := s.Snapshot(t.Context(), "e/")
	if err != nil || len(kvs) != 2 || kvs[0].Key != "e/1" || kvs[1].Key != "e/3" || kvs[1].Revision != revision {
		t.Errorf("stored: %v, %v", kvs, err)
	}
	// None in the way, none written.
	if _, verdicts, err := s.CommitEach(t.Context(), nil, []store.Txn{txn("g/1", "e/4", first)}); err != nil || !errors.As(verdicts[0], &conflict) {
		t.Errorf("verdicts %v, %v", verdicts, err)
	}
	parts := 0
	if _, err := s.Scan(t.Context(), "e/", func(kvs []store.KV) { parts += len(kvs) }); err != nil || parts != 2 {
		t.Errorf("Scan found %d, %v", parts, err)
	}
}
