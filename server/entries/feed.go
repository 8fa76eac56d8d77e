// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
)

// coalesce is how long a feed waits for more changes before it delivers.
const coalesce = 10 * time.Millisecond

// ErrClosed ends a feed whose registry was closed.
var ErrClosed = errors.New("the entry registry is closed")

// Delta is what changed for one agent since the Delta before.
type Delta struct {
	// Full: Put is everything and replaces what the reader had.
	Full bool
	// Put holds entries that are new or changed, in creation order.
	Put []*selectors.Entry
	// Removed holds the ids that the agent is no longer authorised for, in order.
	Removed []string
	// Revision of the store that the reader has now.
	Revision int64
	// State names the entries that the reader has now, for Resume; equal on every server.
	State []byte
}

// Empty reports whether a delta says nothing.
func (d *Delta) Empty() bool { return !d.Full && len(d.Put) == 0 && len(d.Removed) == 0 }

// Feed is one agent's view of the entries. It is read by one goroutine. Nothing queues for a
// slow reader, so none has to be cut: what it has not read becomes part of its next Delta.
type Feed struct {
	r      *Registry
	agent  spiffeid.ID
	node   func() selectors.Set
	dirty  chan struct{}
	sent   []replica.Number // ascending
	resume []byte

	// The feeds' mutex guards these.
	at    int64         // the revision that sent is of; unsent before the first Delta
	filed selectors.Set // the node's selectors then
}

const unsent = math.MaxInt64

// Subscribe starts a feed for the agent; node returns the agent's present node selectors and
// must not call the registry. The first Delta is full. Close the feed after use.
func (r *Registry) Subscribe(agent spiffeid.ID, node func() selectors.Set) *Feed {
	f := &Feed{r: r, agent: agent, node: node, dirty: make(chan struct{}, 1), at: unsent}
	r.feeds.add(f)
	f.wake()
	return f
}

// NodeChanged tells the feeds of an agent that its node selectors may have changed.
func (r *Registry) NodeChanged(agent spiffeid.ID) {
	r.feeds.mu.Lock()
	defer r.feeds.mu.Unlock()
	for f := range r.feeds.byAgent[agent] {
		f.wake()
	}
}

// Resume says that the reader still has what the Delta of this State brought it to. If that is the
// state of things, the first Delta is empty and not full. Call it before the first Take.
func (f *Feed) Resume(state []byte) { f.resume = state }

// Changed tells when to Take: at once for the first Delta, then when there may be another.
func (f *Feed) Changed() <-chan struct{} { return f.dirty }

// Take returns what has changed since the Delta before, which may be nothing. ErrClosed.
func (f *Feed) Take() (Delta, error) {
	select {
	case <-f.r.done:
		return Delta{}, ErrClosed
	default:
	}
	if f.at != unsent { // only this goroutine changes it
		time.Sleep(coalesce)
		select { // what came meanwhile is in the state that diff reads
		case <-f.dirty:
		default:
		}
	}
	return f.diff(), nil
}

// Close ends the feed.
func (f *Feed) Close() { f.r.feeds.drop(f) }

// diff compares what the agent is authorised for with what was sent. So many at a time do as can
// run: when thousands have to, nobody else waits behind them.
func (f *Feed) diff() Delta {
	f.r.turns <- struct{}{}
	defer func() { <-f.r.turns }()
	node := f.node()
	f.r.mu.RLock()
	defer f.r.mu.RUnlock()
	have := f.r.replica.Authorized(f.agent, node)
	slices.Sort(have)
	d := Delta{Revision: f.r.revision, State: f.r.replica.State(have)}
	before, lost := f.r.feeds.advance(f, f.r.revision, node)
	switch {
	case before == unsent && bytes.Equal(f.resume, d.State):
	case before == unsent || lost:
		d.Full = true
		d.Put = f.r.replica.InOrder(slices.Clone(have))
	default:
		f.r.compare(&d, f.sent, before, have)
	}
	f.sent, f.resume = slices.Clip(have), nil
	return d
}

// compare says in d what changed from the records in sent, as of a revision, to those in have.
func (r *Registry) compare(d *Delta, sent []replica.Number, at int64, have []replica.Number) {
	var put, removed []replica.Number
	i := 0
	for _, n := range have {
		for ; i < len(sent) && sent[i] < n; i++ {
			removed = append(removed, sent[i])
		}
		if i < len(sent) && sent[i] == n {
			i++
			if r.replica.Revision(n) <= at {
				continue
			}
		}
		put = append(put, n)
	}
	removed = append(removed, sent[i:]...)
	d.Put = r.replica.InOrder(put)
	again := map[string]bool{} // an id that was deleted and is there anew
	for _, e := range d.Put {
		again[e.ID] = true
	}
	for _, n := range removed {
		if id := r.replica.ID(n); !again[id] {
			d.Removed = append(d.Removed, id)
		}
	}
	slices.Sort(d.Removed)
}

func (f *Feed) wake() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}
