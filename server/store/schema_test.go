// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// migration counts its runs and renames e/ to f/.
func migration(runs *atomic.Int32) store.Migration {
	return store.Migration{What: "e/ is called f/", Run: func(ctx context.Context, s *store.Store) error {
		runs.Add(1)
		kvs, _, err := s.Snapshot(ctx, "e/")
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			txn := store.Txn{Deletes: []string{kv.Key}, Puts: []store.KV{{Key: "f/" + strings.TrimPrefix(kv.Key, "e/"), Value: kv.Value}}}
			if _, err := s.Commit(ctx, txn); err != nil {
				return err
			}
		}
		return nil
	}}
}

// TestMigrate: a store from before forms were numbered is brought forward, once, whoever tries;
// servers that know less stop writing, and do not start.
func TestMigrate(t *testing.T) {
	dir := t.TempDir()
	one := storetest.OpenDir(t, dir)
	put(t, one, "m/trust_domain", "example.org")
	put(t, one, "e/1", "old")
	endpoint := "unix://" + dir + "/run/client.sock"
	two := storetest.OpenConfig(t, store.Config{Endpoints: []string{endpoint}})
	old := storetest.OpenConfig(t, store.Config{Endpoints: []string{endpoint}})
	if err := old.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	put(t, old, "x/1", "x")

	var runs atomic.Int32
	steps := []store.Migration{migration(&runs), {What: "nothing", Run: func(context.Context, *store.Store) error { return nil }}}
	var wg sync.WaitGroup
	for _, s := range []*store.Store{one, two} {
		wg.Go(func() {
			if err := s.Migrate(t.Context(), steps); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() != 1 {
		t.Errorf("the migration ran %d times", runs.Load())
	}
	if kvs, _, err := one.Snapshot(t.Context(), "f/"); err != nil || len(kvs) != 1 || string(kvs[0].Value) != "old" {
		t.Errorf("after the migration: %v, %v", kvs, err)
	}
	put(t, one, "f/2", "new")
	_, err := one.Commit(t.Context(), store.Txn{Compares: []store.Compare{store.Unchanged("f/2", 0)}, Puts: []store.KV{{Key: "f/2"}}})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("a conflict under a schema: %v", err)
	}
	_, err = old.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: "e/3"}}})
	if !errors.Is(err, store.ErrNewerSchema) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write by an old server: %v", err)
	}
	err = old.Migrate(t.Context(), steps[:1])
	if !errors.Is(err, store.ErrNewerSchema) || !strings.Contains(err.Error(), "it has version 3 and this assay-server knows 2") {
		t.Errorf("the start of an old server: %v", err)
	}
}

// TestMigrationFails: the form stays what it was, and the next try does it.
func TestMigrationFails(t *testing.T) {
	s := storetest.Open(t)
	put(t, s, "m/trust_domain", "example.org")
	put(t, s, "e/1", "old")
	broken := errors.New("broken")
	err := s.Migrate(t.Context(), []store.Migration{{What: "x", Run: func(context.Context, *store.Store) error { return broken }}})
	if !errors.Is(err, broken) {
		t.Fatalf("Migrate = %v", err)
	}
	var runs atomic.Int32
	if err := s.Migrate(t.Context(), []store.Migration{migration(&runs)}); err != nil || runs.Load() != 1 {
		t.Errorf("the second try: %v, %d runs", err, runs.Load())
	}
	fresh := storetest.Open(t) // has the newest form from the start
	if err := fresh.Migrate(t.Context(), []store.Migration{migration(&runs)}); err != nil || runs.Load() != 1 {
		t.Errorf("an empty store: %v, %d runs", err, runs.Load())
	}
}
