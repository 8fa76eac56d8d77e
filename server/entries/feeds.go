// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
)

// feeds finds the feeds that a change is about. What a feed looks at is not filed: a change
// climbs from its entry to the agents instead, by the same parents by which they come down. The
// mutex is taken after the registry's lock.
type feeds struct {
	mu         sync.Mutex
	all        map[*Feed]struct{}
	byAgent    map[spiffeid.ID]map[*Feed]struct{}
	bySelector map[selectors.Selector]map[*Feed]struct{} // of the node
	floor      int64                                     // removals up to it are forgotten
}

func (s *feeds) add(f *Feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all, s.byAgent = map[*Feed]struct{}{}, map[spiffeid.ID]map[*Feed]struct{}{}
		s.bySelector = map[selectors.Selector]map[*Feed]struct{}{}
	}
	s.all[f] = struct{}{}
	file(s.byAgent, f.agent, f)
}

func (s *feeds) drop(f *Feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, f)
	unfile(s.byAgent, f.agent, f)
	s.refile(f, nil)
}

// advance files the feed by what its node is now. It returns the revision that it was at, and
// whether removals since are forgotten.
func (s *feeds) advance(f *Feed, revision int64, node selectors.Set) (before int64, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, f.at = f.at, revision
	if _, open := s.all[f]; open && !f.filed.Equal(node) {
		s.refile(f, node)
	}
	return before, before < s.floor
}

func (s *feeds) refile(f *Feed, node selectors.Set) {
	for _, sel := range f.filed {
		unfile(s.bySelector, sel, f)
	}
	f.filed = node
	for _, sel := range node {
		file(s.bySelector, sel, f)
	}
}

func file[K comparable](m map[K]map[*Feed]struct{}, k K, f *Feed) {
	if m[k] == nil {
		m[k] = map[*Feed]struct{}{}
	}
	m[k][f] = struct{}{}
}

func unfile[K comparable](m map[K]map[*Feed]struct{}, k K, f *Feed) {
	if delete(m[k], f); len(m[k]) == 0 {
		delete(m, k)
	}
}

// Oldest is the revision that all feeds have passed (replica.Readers).
func (s *feeds) Oldest() int64 {
	oldest := int64(unsent)
	for f := range s.all {
		oldest = min(oldest, f.at)
	}
	return oldest
}

// Forget has feeds that are not past a revision start anew.
func (s *feeds) Forget(revision int64) { s.floor = revision }

// wave wakes the feeds that one batch of changes is about.
type wave struct {
	s    *feeds
	have *replica.Replica
	seen map[uint32]bool // places that were climbed
	wake []*Feed
	left int
}

// patience is how many nodes and places a wave looks at; when that is used up it wakes all: each
// feed finds out for itself, and the follower is not held up.
const patience = 100_000

func (s *feeds) wave(have *replica.Replica) *wave {
	s.mu.Lock()
	return &wave{s: s, have: have, seen: map[uint32]bool{}, left: patience}
}

// end wakes them. Writers who wait for the replica are woken before.
func (w *wave) end() {
	for _, f := range w.wake {
		f.wake()
	}
	w.s.mu.Unlock()
}

// reach wakes the feeds that may hold the record. It is called before a removal or change and
// after a change or creation. A place that was climbed in this wave needs no second time: what
// came above it since has woken its feeds itself.
func (w *wave) reach(n replica.Number) {
	if w.left <= 0 || len(w.s.all) == 0 {
		return
	}
	w.have.Holders(n, w.seen, func(id spiffeid.ID) bool {
		for f := range w.s.byAgent[id] {
			w.wake = append(w.wake, f)
		}
		return w.spend(1)
	}, func(set selectors.Set) bool {
		return len(set) == 0 || w.nodes(set)
	})
}

// nodes wakes the feeds whose nodes have the selectors.
func (w *wave) nodes(set selectors.Set) bool {
	rarest := slices.MinFunc(set, func(a, b selectors.Selector) int {
		return len(w.s.bySelector[a]) - len(w.s.bySelector[b])
	})
	among := w.s.bySelector[rarest]
	if !w.spend(1 + len(among)) {
		return false
	}
	for f := range among {
		if set.SubsetOf(f.filed) {
			w.wake = append(w.wake, f)
		}
	}
	return true
}

func (w *wave) spend(n int) bool {
	if w.left -= n; w.left > 0 {
		return true
	}
	w.wake = slices.AppendSeq(w.wake[:0], maps.Keys(w.s.all))
	return false
}
