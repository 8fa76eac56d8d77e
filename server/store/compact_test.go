// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// TestWatchCompacted needs etcd itself: compaction is not ours to order.
func TestWatchCompacted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, Config{Dir: t.TempDir(), Executable: os.Args[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var revision int64
	for range 5 {
		if revision, err = s.Commit(ctx, Txn{Puts: []KV{{Key: "e/1"}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.client.Compact(ctx, revision); err != nil {
		t.Fatal(err)
	}
	b, ok := <-s.Watch(ctx, "e/", 1)
	if !ok || !errors.Is(b.Err, ErrCompacted) {
		t.Errorf("a watch from a compacted revision delivered %+v, want ErrCompacted", b)
	}
	// From the present revision all is well.
	batches := s.Watch(ctx, "e/", revision)
	if _, err := s.Commit(ctx, Txn{Puts: []KV{{Key: "e/2"}}}); err != nil {
		t.Fatal(err)
	}
	if b := <-batches; b.Err != nil || b.Changes[0].Key != "e/2" {
		t.Errorf("delivered %+v", b)
	}
}
