// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/storetest"
)

// view is entries by id: what there is, or what an agent was told.
type view map[string]*selectors.Entry

// authorized is what an agent may hold, found by trying everything.
func (v view) authorized(agent spiffeid.ID, node selectors.Set) view {
	parents := map[spiffeid.ID]bool{agent: true}
	for _, e := range v {
		if set := e.SelectorSet(); e.ParentID == id("/spire/server") && set.SubsetOf(node) {
			parents[e.SPIFFEID] = true
		}
	}
	out := view{}
	for n := -1; n != len(parents); {
		n = len(parents)
		for _, e := range v {
			if parents[e.ParentID] {
				parents[e.SPIFFEID], out[e.ID] = true, e
			}
		}
	}
	return out
}

// told applies a delta, and complains about one that says what is known.
func (v view) told(t *testing.T, d entries.Delta) view {
	t.Helper()
	if d.Full {
		v = view{}
	}
	for _, id := range d.Removed {
		if v[id] == nil {
			t.Errorf("told to remove %s, which it never had", id)
		}
		delete(v, id)
	}
	for _, e := range d.Put {
		if reflect.DeepEqual(v[e.ID], e) {
			t.Errorf("told again of %+v", e)
		}
		v[e.ID] = e
	}
	return v
}

// agent follows its feed into a view.
type agent struct {
	id   spiffeid.ID
	feed *entries.Feed
	view view

	mu   sync.Mutex
	node selectors.Set
}

func (a *agent) nodeNow() selectors.Set { a.mu.Lock(); defer a.mu.Unlock(); return a.node }

func (a *agent) follow(t *testing.T, want view) {
	t.Helper()
	for !reflect.DeepEqual(a.view, want) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		d, err := a.feed.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%s stays with %v, want %v", a.id, slices.Sorted(maps.Keys(a.view)), slices.Sorted(maps.Keys(want)))
		}
		a.view = a.view.told(t, d)
	}
}

// TestFeedsAgainstModel: after each of many random changes, written through another server,
// every agent is told exactly what changed for it. One agent reads so seldom that the server
// forgets what it was told; it ends with the truth all the same.
func TestFeedsAgainstModel(t *testing.T) {
	s := storetest.Open(t)
	r, writer := open(t, s), open(t, s)
	r.SetGraves(8, 40)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	all := view{}
	var agents []*agent
	for i := range 5 {
		a := &agent{id: id(fmt.Sprintf("/agent/%d", i%4)), view: view{}}
		a.feed = r.Subscribe(a.id, a.nodeNow)
		defer a.feed.Close()
		agents = append(agents, a)
	}
	slow := agents[4]
	for round := range 120 {
		for range 1 + rng.IntN(6) {
			change(t, rng, writer, all)
		}
		if a := agents[rng.IntN(len(agents))]; rng.IntN(4) == 0 {
			a.mu.Lock()
			a.node = selectors.NewSet(randomSelectors(rng, rng.IntN(5))...)
			a.mu.Unlock()
			r.NodeChanged(a.id)
		}
		for _, a := range agents {
			if a != slow || round%40 == 39 {
				a.follow(t, all.authorized(a.id, a.nodeNow()))
			}
		}
	}
	if n := r.Graves(); n > 40+8 {
		t.Errorf("%d removals are remembered, want at most 48", n)
	}
}

func randomSelectors(rng *rand.Rand, n int) []selectors.Selector {
	var ss []selectors.Selector
	for range n {
		ss = append(ss, selectors.Selector{Type: "s", Value: fmt.Sprint(rng.IntN(4))})
	}
	return slices.Compact(slices.SortedFunc(slices.Values(ss), selectors.Selector.Compare))
}

func randomize(rng *rand.Rand, e *selectors.Entry) {
	places := []string{"/spire/server", "/agent/0", "/agent/1", "/agent/2", "/agent/3", "/a", "/b", "/c", "/d"}
	e.ParentID, e.SPIFFEID = id(places[rng.IntN(len(places))]), id(places[5+rng.IntN(4)])
	e.Selectors = randomSelectors(rng, 1+rng.IntN(2))
	if rng.IntN(3) == 0 {
		e.Hint = fmt.Sprint(rng.IntN(3))
	}
}

// change does one random thing to the server and to the model.
func change(t *testing.T, rng *rand.Rand, r *entries.Registry, all view) {
	t.Helper()
	ids := slices.Sorted(maps.Keys(all))
	var res entries.Result
	switch {
	case len(ids) < 10 || len(ids) < 60 && rng.IntN(3) == 0:
		e := &selectors.Entry{}
		randomize(rng, e)
		if rng.IntN(3) == 0 {
			e.ID = fmt.Sprintf("custom-%d", rng.IntN(6)) // taken, or deleted a moment ago
		}
		res = r.Create(t.Context(), []*selectors.Entry{e})[0]
	case rng.IntN(2) == 0:
		res = r.Update(t.Context(), []entries.Update{{ID: ids[rng.IntN(len(ids))], Change: func(e *selectors.Entry) error { randomize(rng, e); return nil }}})[0]
	default:
		gone := ids[rng.IntN(len(ids))]
		if res := r.Delete(t.Context(), []string{gone}); res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		delete(all, gone)
		return
	}
	switch {
	case errors.Is(res.Err, entries.ErrSimilar), errors.Is(res.Err, entries.ErrDuplicate):
	case res.Err != nil:
		t.Fatal(res.Err)
	default:
		all[res.Entry.ID] = res.Entry
	}
}

// TestManyWriters: many callers of two servers create, change and delete the same few entries at
// once. Each is answered as if they had come one after the other: nothing is there twice, what
// was acknowledged is there, and both servers and a third that reads anew agree.
func TestManyWriters(t *testing.T) {
	s := storetest.Open(t)
	servers := []*entries.Registry{open(t, s), open(t, s)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	created, deleted := map[string]int{}, map[string]int{}
	for w := range 24 {
		rng := rand.New(rand.NewPCG(uint64(w), 2))
		r := servers[w%2]
		wg.Go(func() {
			for range 30 {
				var es []*selectors.Entry
				for range 1 + rng.IntN(4) {
					e := entry(fmt.Sprintf("/agent/%d", rng.IntN(3)), fmt.Sprintf("/w/%d", rng.IntN(3)), "s:1")
					if rng.IntN(2) == 0 {
						e.ID = fmt.Sprintf("id-%d", rng.IntN(5))
					}
					es = append(es, e)
				}
				for i, res := range r.Create(t.Context(), es) {
					switch {
					case res.Err == nil:
						mu.Lock()
						created[res.Entry.ID]++
						mu.Unlock()
					case !errors.Is(res.Err, entries.ErrSimilar) && !errors.Is(res.Err, entries.ErrDuplicate):
						t.Errorf("create %d: %v", i, res.Err)
					}
				}
				if all, _, _ := r.List(entries.Filter{}, 0, ""); len(all) > 0 {
					e := all[rng.IntN(len(all))]
					move := func(e *selectors.Entry) error { e.ParentID = id(fmt.Sprintf("/agent/%d", rng.IntN(3))); return nil }
					if rng.IntN(8) == 0 { // else twins arise by moving, which is allowed
						move = func(*selectors.Entry) error { return nil }
					}
					if res := r.Update(t.Context(), []entries.Update{{ID: e.ID, Change: move}})[0]; res.Err != nil && !errors.Is(res.Err, entries.ErrNotFound) {
						t.Errorf("update: %v", res.Err)
					}
					res := r.Delete(t.Context(), []string{e.ID, e.ID})
					for _, res := range res {
						if res.Err == nil {
							mu.Lock()
							deleted[e.ID]++
							mu.Unlock()
						} else if !errors.Is(res.Err, entries.ErrNotFound) {
							t.Errorf("delete: %v", res.Err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	want := map[string]bool{}
	for id, n := range created {
		switch left := n - deleted[id]; left {
		case 0:
		case 1:
			want[id] = true
		default:
			t.Errorf("%s was created %d times and deleted %d times", id, n, deleted[id])
		}
	}
	kvs, _, err := s.Snapshot(t.Context(), "e/")
	if err != nil || len(kvs) != len(want)+1 { // and e/writer
		t.Errorf("%d entries are stored, want %d (%v)", len(kvs), len(want), err)
	}
	for i, r := range append(servers, open(t, s)) {
		has := func() map[string]bool {
			list, _, _ := r.List(entries.Filter{}, 0, "")
			got := map[string]bool{}
			for _, e := range list {
				got[e.ID] = true
			}
			return got
		}
		for end := time.Now().Add(10 * time.Second); !maps.Equal(has(), want) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond) // it has yet to hear of what the other did last
		}
		if got := has(); !maps.Equal(got, want) || r.Count(entries.Filter{}) != len(want) {
			t.Errorf("server %d has %v, want %v", i, got, want)
		}
	}
	chosen, _, err := s.Snapshot(t.Context(), "id/")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range chosen {
		if !want[kv.Key[3:]] {
			t.Errorf("%s is left over", kv.Key)
		}
	}
}
