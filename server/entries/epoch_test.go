// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

func guards(t *testing.T, s *store.Store) int {
	t.Helper()
	kvs, _, err := s.Snapshot(t.Context(), "g/")
	if err != nil {
		t.Fatal(err)
	}
	return len(kvs)
}

// TestAloneWithoutGuards: who is alone writes none; from the moment when another one has something to
// write, both do, and until the next one starts.
func TestAloneWithoutGuards(t *testing.T) {
	s := storetest.Open(t)
	first := open(t, s)
	create(t, first, entry("/a", "/1", "s:1"), entry("/b", "/1", "s:1"))
	if n := guards(t, s); n != 0 {
		t.Errorf("%d guards of a server that is alone", n)
	}
	second := open(t, s)
	create(t, first, entry("/a", "/2", "s:1")) // the second has claimed the writing, and the first shares it
	create(t, second, entry("/b", "/2", "s:1"))
	if n := guards(t, s); n != 2 {
		t.Errorf("%d guards of two servers that wrote below one parent each", n)
	}
	if res := second.Create(t.Context(), []*selectors.Entry{entry("/a", "/1", "s:1")}); !errors.Is(res[0].Err, entries.ErrSimilar) {
		t.Errorf("what the first wrote when it was alone: %v", res[0].Err)
	}
	third := open(t, s)
	create(t, third, entry("/c", "/1", "s:1"))
	if n := guards(t, s); n != 2 {
		t.Errorf("%d guards after the third server claimed the writing", n)
	}
	create(t, first, entry("/d", "/1", "s:1"))
	create(t, third, entry("/e", "/1", "s:1"))
	if n := guards(t, s); n != 4 {
		t.Errorf("%d guards after the first server wrote again", n)
	}
}

// TestClaimsAmongWriters: servers come while others write the same entries.
func TestClaimsAmongWriters(t *testing.T) {
	s := storetest.Open(t)
	const rounds, n = 8, 25
	var wg sync.WaitGroup
	for range rounds {
		r := open(t, s)
		wg.Go(func() {
			for i := range n {
				res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", fmt.Sprintf("/w%d", i), "a:1")})[0]
				if res.Err != nil && !errors.Is(res.Err, entries.ErrSimilar) {
					t.Error(res.Err)
				}
			}
		})
	}
	wg.Wait()
	if kvs, _, _ := s.Snapshot(t.Context(), "e/"); len(kvs) != n+1 { // and e/writer
		t.Errorf("%d entries stored, want %d", len(kvs)-1, n)
	}
}

// late is a store that takes commits and answers none of them, until it is let go.
type late struct {
	*store.Store

	mu    sync.Mutex
	holds bool
	kept  []func() error // the commits
}

func (l *late) hold(holds bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds = holds
}

func (l *late) CommitEach(ctx context.Context, common []store.Compare, txns []store.Txn) (int64, []error, error) {
	l.mu.Lock()
	holds := l.holds
	if holds {
		l.kept = append(l.kept, func() error {
			_, verdicts, err := l.Store.CommitEach(context.Background(), common, txns)
			return errors.Join(append(verdicts, err)...)
		})
	}
	l.mu.Unlock()
	if !holds {
		return l.Store.CommitEach(ctx, common, txns)
	}
	return 0, nil, store.ErrUnavailable
}

// TestLateCommit: a commit whose caller was told that it failed takes effect before what is written
// after that, and is seen by it, or never.
func TestLateCommit(t *testing.T) {
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("early %v", early), func(t *testing.T) {
			l := &late{Store: storetest.Open(t)}
			r := open(t, l)
			l.hold(true)
			if res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", "/w", "a:1")}); !errors.Is(res[0].Err, store.ErrUnavailable) {
				t.Fatal(res[0].Err)
			}
			l.hold(false)
			if early {
				if err := l.kept[0](); err != nil {
					t.Fatal(err)
				}
			}
			res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", "/w", "a:1")})
			if early != errors.Is(res[0].Err, entries.ErrSimilar) || !early && res[0].Err != nil {
				t.Errorf("the same again: %v", res[0].Err)
			}
			create(t, r, entry("/agent", "/x", "a:1")) // the one before may have been no write
			for _, commit := range l.kept {
				if err := commit(); !errors.Is(err, store.ErrConflict) {
					t.Errorf("the former commit, now: %v", err)
				}
			}
			if kvs, _, _ := l.Snapshot(t.Context(), "e/"); len(kvs) != 3 { // and e/writer
				t.Errorf("%d entries stored, want 2", len(kvs)-1)
			}
		})
	}
}
