// SPDX-License-Identifier: Apache-2.0

package api

import (
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/assay-id/assay/proto/node"
)

// Streams are the open streams of agents, and which trust bundle the agents behind them use. There are
// thousands: none has a goroutine for waiting.
type Streams struct {
	mu      sync.Mutex
	stopped bool
	byAgent map[spiffeid.ID][]*openStream
	feeds   map[*feed]bool
}

// openStream is one stream of an agent.
type openStream struct {
	// check ends the stream if the agent is no longer admitted; it may wait for the store.
	check func()
	// stop ends it because the server stops.
	stop func()
}

// feed is one Watch stream.
type feed struct {
	of     *Streams
	agent  spiffeid.ID
	stream nodev1.Node_WatchServer

	// The Streams' mutex guards these.
	has, sent uint64 // sequence numbers of bundles: that the agent uses, that it was told
	listening bool
}

// NewStreams returns an account without a stream.
func NewStreams() *Streams {
	return &Streams{byAgent: map[spiffeid.ID][]*openStream{}, feeds: map[*feed]bool{}}
}

// enter keeps account of a stream until the returned function is called.
func (w *Streams) enter(agent spiffeid.ID, o *openStream) (leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		o.stop()
	}
	w.byAgent[agent] = append(w.byAgent[agent], o)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		left := slices.DeleteFunc(w.byAgent[agent], func(other *openStream) bool { return other == o })
		if w.byAgent[agent] = left; len(left) == 0 {
			delete(w.byAgent, agent)
		}
	}
}

// follow keeps account of the bundle that an agent uses until the feed is left.
func (w *Streams) follow(agent spiffeid.ID, has uint64, stream nodev1.Node_WatchServer) *feed {
	f := &feed{of: w, agent: agent, stream: stream, has: has}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.feeds[f] = true
	return f
}

func (f *feed) leave() {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	delete(f.of.feeds, f)
}

// told says that the bundle of this sequence number is on its way: the agent is listened to until it
// has shown that it uses it.
func (f *feed) told(sequence uint64) {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	f.sent = sequence
	if f.has < sequence && !f.listening {
		f.listening = true
		go f.listen()
	}
}

func (f *feed) listen() {
	for listening := true; listening; {
		req, err := f.stream.Recv() // ends with the stream
		if err != nil {
			return
		}
		f.of.mu.Lock()
		f.has = req.BundleSequence
		f.listening = f.has < f.sent
		listening = f.listening
		f.of.mu.Unlock()
	}
}

// named is how many agents Behind names at most: it is asked again and again while thousands are.
const named = 1000

// Behind names agents with an open feed that do not use the trust bundle of this sequence
// number, or a later one, yet. SPIRE's agents poll, have no feed and are not among them.
func (w *Streams) Behind(sequence uint64) (behind []string) {
	w.mu.Lock()
	for f := range w.feeds {
		if f.has < sequence {
			if behind = append(behind, f.agent.String()); len(behind) == named {
				break
			}
		}
	}
	w.mu.Unlock()
	slices.Sort(behind)
	return slices.Compact(behind)
}

// stop ends all streams, and those that come.
func (w *Streams) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	for _, streams := range w.byAgent {
		for _, o := range streams {
			o.stop()
		}
	}
}

// NodeChanged makes the agent's open streams check that it is still admitted.
func (w *Streams) NodeChanged(agent spiffeid.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.byAgent[agent] {
		go o.check()
	}
}

// Count returns how many agents have an open stream, the feeds among these, and how many of those do not use
// the trust bundle of this sequence number, or a later one, yet.
func (w *Streams) Count(sequence uint64) (agents, feeds, behind int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.feeds {
		if f.has < sequence {
			behind++
		}
	}
	return len(w.byAgent), len(w.feeds), behind
}
