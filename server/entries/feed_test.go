// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
)

// BenchmarkFeeds follows 10,000 agents with 1,000 entries each (one of their own, the others by
// the one group that all are in), and says what a feed takes and how long a change takes until
// all whom it is about have it. The store is quick and forgets, so that only this code is measured.
func BenchmarkFeeds(b *testing.B) {
	const agents, shared = 10_000, 999
	s := &quick{batches: make(chan store.Batch)}
	r, err := entries.Open(b.Context(), entries.Config{Store: s, TrustDomain: td, ForeignSelectors: foreign, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	name := func(i int) string { return fmt.Sprintf("/spire/agent/tpm/%064x", i) }
	var all []*selectors.Entry
	for i := range shared {
		all = append(all, entry("/group", fmt.Sprintf("/service/%d", i), "unix:uid:1", fmt.Sprintf("unix:gid:%d", i)))
	}
	for i := range agents {
		all = append(all, entry(name(i), fmt.Sprintf("/own/%d", i), "unix:uid:1"))
	}
	all = append(all, entry("/spire/server", "/group", "x:group:all"))
	made := create0(b, r, all)
	alias := made[len(made)-1]

	before := heapInUse()
	node := selectors.NewSet(selectors.Selector{Type: "x", Value: "group:all"})
	told := make(chan time.Time, agents)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	feeds := make([]*entries.Feed, agents)
	for i := range feeds {
		feeds[i] = r.Subscribe(id(name(i)), func() selectors.Set { return node })
		if d, err := feeds[i].Next(ctx); err != nil || len(d.Put) != shared+1 {
			b.Fatal(len(d.Put), err)
		}
	}
	b.Logf("memory of a feed: %d B", (heapInUse()-before)/agents)
	for _, f := range feeds {
		wg.Go(func() {
			defer f.Close()
			for {
				if _, err := f.Next(ctx); err != nil {
					return
				}
				told <- time.Now()
			}
		})
	}
	round := func(what string, expect int, e *selectors.Entry) {
		var times []time.Duration
		var apply time.Duration
		for k := range 5 {
			began := time.Now()
			hint := fmt.Sprint(k)
			if res := r.Update(ctx, []entries.Update{{ID: e.ID, Change: func(e *selectors.Entry) error { e.Hint = hint; return nil }}}); res[0].Err != nil {
				b.Fatal(res[0].Err)
			}
			apply = max(apply, time.Since(began))
			for range expect {
				times = append(times, (<-told).Sub(began))
			}
		}
		slices.Sort(times)
		b.Logf("%s: written and in the replica within %v; told %d: p50 %v, p99 %v", what, apply, expect, times[len(times)/2], times[len(times)*99/100])
	}
	for b.Loop() {
		round("an entry of one agent changes", 1, made[shared])
		round("an entry of the group of all changes", agents, made[0])
		e := *alias // the alias changes, and no agent's entries with it
		began := time.Now()
		if res := r.Update(ctx, []entries.Update{{ID: e.ID, Change: func(e *selectors.Entry) error { e.Hint = "x"; return nil }}}); res[0].Err != nil {
			b.Fatal(res[0].Err)
		}
		b.Logf("the alias of all changes: written and in the replica within %v", time.Since(began))
	}
}

func create0(b *testing.B, r *entries.Registry, es []*selectors.Entry) (out []*selectors.Entry) {
	for _, res := range r.Create(b.Context(), es) {
		if res.Err != nil {
			b.Fatal(res.Err)
		}
		out = append(out, res.Entry)
	}
	return out
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// quick is the far side for a benchmark: it tells the watch of every write and keeps none.
type quick struct {
	mu       sync.Mutex
	revision int64
	batches  chan store.Batch
}

func (q *quick) Scan(context.Context, string, func([]store.KV)) (int64, error) { return 0, nil }

func (q *quick) Watch(context.Context, string, int64) <-chan store.Batch { return q.batches }

func (q *quick) CommitEach(_ context.Context, _ []store.Compare, txns []store.Txn) (int64, []error, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.revision++
	b := store.Batch{Revision: q.revision}
	for _, txn := range txns {
		for _, kv := range txn.Puts {
			if kv.Key[:2] == "e/" {
				b.Changes = append(b.Changes, store.Change{Key: kv.Key, Value: kv.Value, Revision: q.revision})
			}
		}
	}
	if txns[0].Puts[0].Key != "e/writer" { // nobody watches when that is claimed
		q.batches <- b
	}
	return q.revision, make([]error, len(txns)), nil
}
