// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
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
	r       *Registry
	agent   spiffeid.ID
	node    func() selectors.Set
	dirty   chan struct{}
	sent    map[string]*record // by id; nil before the first Delta
	resume  []byte
	parents map[spiffeid.ID]bool
}

// feeds finds the feeds that a change is about. The registry's lock is held by all callers;
// the mutex is for those that hold it for reading.
type feeds struct {
	mu       sync.Mutex
	all      map[*Feed]bool
	byParent map[spiffeid.ID]map[*Feed]bool
}

// Subscribe starts a feed for the agent; node returns the agent's present node selectors and
// must not call the registry. The first Delta is full. Close the feed after use.
func (r *Registry) Subscribe(agent spiffeid.ID, node func() selectors.Set) *Feed {
	f := &Feed{r: r, agent: agent, node: node, dirty: make(chan struct{}, 1)}
	r.feeds.mu.Lock()
	defer r.feeds.mu.Unlock()
	if r.feeds.all == nil {
		r.feeds.all, r.feeds.byParent = map[*Feed]bool{}, map[spiffeid.ID]map[*Feed]bool{}
	}
	r.feeds.all[f] = true
	r.feeds.file(f, map[spiffeid.ID]bool{agent: true}) // NodeChanged looks here
	f.wake()
	return f
}

// NodeChanged tells the feeds of an agent that its node selectors may have changed.
func (r *Registry) NodeChanged(agent spiffeid.ID) {
	r.feeds.mu.Lock()
	defer r.feeds.mu.Unlock()
	for f := range r.feeds.byParent[agent] {
		f.wake()
	}
}

// Resume says that the reader still has what the Delta of this State brought it to. If that is the
// state of things, the first Delta is empty and not full. Call it before Next.
func (f *Feed) Resume(state []byte) { f.resume = state }

// Next waits for a change and returns it; the first Delta comes at once.
func (f *Feed) Next(ctx context.Context) (Delta, error) {
	for {
		select {
		case <-f.dirty:
		case <-f.r.done:
			return Delta{}, ErrClosed
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		}
		first := f.sent == nil
		if !first {
			time.Sleep(coalesce)
			select { // what came meanwhile is in the state that diff reads
			case <-f.dirty:
			default:
			}
		}
		if d := f.diff(); first || !d.Empty() {
			return d, nil
		}
	}
}

// Close ends the feed.
func (f *Feed) Close() {
	f.r.feeds.mu.Lock()
	defer f.r.feeds.mu.Unlock()
	delete(f.r.feeds.all, f)
	f.r.feeds.file(f, nil)
}

// diff compares what the agent is authorised for with what was sent.
func (f *Feed) diff() Delta {
	node := f.node()
	f.r.mu.RLock()
	found, parents := f.r.replica.crawl(f.agent, node)
	revision := f.r.replica.revision
	f.r.feeds.mu.Lock()
	f.r.feeds.file(f, parents)
	f.r.feeds.mu.Unlock()
	f.r.mu.RUnlock()

	d := Delta{Full: f.sent == nil, Revision: revision, State: found.state()}
	if d.Full && bytes.Equal(f.resume, d.State) {
		d.Full = false
		f.sent = found.byID()
		return d
	}
	have := found.byID()
	var changed records
	for id, rec := range have {
		if f.sent[id] != rec {
			changed = append(changed, rec)
		}
	}
	for id := range f.sent {
		if have[id] == nil {
			d.Removed = append(d.Removed, id)
		}
	}
	slices.SortFunc(d.Removed, strings.Compare)
	d.Put = changed.inOrder()
	f.sent = have
	return d
}

func (rs records) byID() map[string]*record {
	m := make(map[string]*record, len(rs))
	for _, rec := range rs {
		m[rec.entry.ID] = rec
	}
	return m
}

// state is the sum, modulo 2 by bit, of a hash of each record's key and revision: the order of
// records does not matter.
func (rs records) state() []byte {
	sum := make([]byte, sha256.Size)
	for _, rec := range rs {
		h := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(rec.key), uint64(rec.revision)))
		subtle.XORBytes(sum, sum, h[:])
	}
	return sum
}

func (f *Feed) wake() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

// file puts the feed under its new parents; the mutex is held.
func (s *feeds) file(f *Feed, parents map[spiffeid.ID]bool) {
	for id := range f.parents {
		if !parents[id] {
			delete(s.byParent[id], f)
			if len(s.byParent[id]) == 0 {
				delete(s.byParent, id)
			}
		}
	}
	for id := range parents {
		if s.byParent[id] == nil {
			s.byParent[id] = map[*Feed]bool{}
		}
		s.byParent[id][f] = true
	}
	f.parents = parents
}

func (s *feeds) wake(parent spiffeid.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.byParent[parent] {
		f.wake()
	}
}

func (s *feeds) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.all {
		f.wake()
	}
}
