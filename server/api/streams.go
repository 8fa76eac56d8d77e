// SPDX-License-Identifier: Apache-2.0

package api

import (
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/assay-id/assay/proto/node"
)

// Streams are the open streams of agents, and which trust bundle the agents behind them use.
type Streams struct {
	stopped chan struct{}
	once    sync.Once

	mu      sync.Mutex
	byAgent map[spiffeid.ID]map[chan struct{}]bool
	feeds   map[*feed]bool
}

// feed is one Watch stream and the sequence number of the bundle that its agent has.
type feed struct {
	agent spiffeid.ID
	has   uint64
}

// NewStreams returns an account without a stream.
func NewStreams() *Streams {
	return &Streams{stopped: make(chan struct{}), byAgent: map[spiffeid.ID]map[chan struct{}]bool{}, feeds: map[*feed]bool{}}
}

func (w *Streams) enter(agent spiffeid.ID) (changed <-chan struct{}, leave func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byAgent[agent] == nil {
		w.byAgent[agent] = map[chan struct{}]bool{}
	}
	w.byAgent[agent][ch] = true
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.byAgent[agent], ch)
		if len(w.byAgent[agent]) == 0 {
			delete(w.byAgent, agent)
		}
	}
}

// acknowledged keeps account of the bundle that an agent uses until the returned function is called.
func (w *Streams) acknowledged(agent spiffeid.ID, sequence uint64, stream nodev1.Node_WatchServer) (done func()) {
	f := &feed{agent, sequence}
	w.mu.Lock()
	w.feeds[f] = true
	w.mu.Unlock()
	go func() {
		for {
			req, err := stream.Recv() // ends with the stream
			if err != nil {
				return
			}
			w.mu.Lock()
			f.has = req.BundleSequence
			w.mu.Unlock()
		}
	}()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.feeds, f)
	}
}

// Behind names the agents with an open feed that do not use the trust bundle of this sequence
// number, or a later one, yet. SPIRE's agents poll, have no feed and are not among them.
func (w *Streams) Behind(sequence uint64) []string {
	behind := map[string]bool{}
	w.mu.Lock()
	for f := range w.feeds {
		if f.has < sequence {
			behind[f.agent.String()] = true
		}
	}
	w.mu.Unlock()
	return slices.Sorted(maps.Keys(behind))
}

func (w *Streams) stop() { w.once.Do(func() { close(w.stopped) }) }

// NodeChanged makes the agent's open streams check that it is still admitted.
func (w *Streams) NodeChanged(agent spiffeid.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.byAgent[agent] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
