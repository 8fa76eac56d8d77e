// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/assay-id/assay/server/store"
)

const (
	peerPrefix = "s/" // + a server's id
	sayEvery   = 10 * time.Second
	// livesFor is how long after its last word a server counts as living.
	livesFor   = 3 * sayEvery
	askEvery   = 50 * time.Millisecond
	sayTimeout = 5 * time.Second
)

// peerFile is a server's word in the store, JSON.
type peerFile struct {
	// Sequence of the bundle that this server has, and all agents that are connected to it.
	Sequence uint64    `json:"bundle_sequence"`
	At       time.Time `json:"at"` // for people: clocks differ
}

// Peers are the living servers by their words in the store. Make one with OpenPeers.
type Peers struct {
	store Store
	self  string
	acked func(sequence uint64) (waiting []string)
	log   *slog.Logger

	mu       sync.Mutex
	revision int64
	seen     map[string]peer
}

type peer struct {
	sequence uint64
	heard    time.Time // by our own, monotonic clock
}

// OpenPeers reads what servers have seen. self is our id; acked returns who is connected to us and
// has not shown that he has a bundle.
func OpenPeers(ctx context.Context, s Store, self string, acked func(uint64) []string, log *slog.Logger) (*Peers, error) {
	p := &Peers{store: s, self: self, acked: acked, log: log}
	return p, p.rebuild(ctx)
}

func (p *Peers) rebuild(ctx context.Context) error {
	changes, revision, err := snapshot(ctx, p.store, peerPrefix)
	if err != nil {
		return fmt.Errorf("read what other servers have seen: %w", err)
	}
	p.mu.Lock()
	p.seen = map[string]peer{}
	p.mu.Unlock()
	p.apply(store.Batch{Revision: revision, Changes: changes})
	return nil
}

func (p *Peers) apply(batch store.Batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revision = batch.Revision
	for _, ch := range batch.Changes {
		id := strings.TrimPrefix(ch.Key, peerPrefix)
		var file peerFile
		if ch.Value == nil || json.Unmarshal(ch.Value, &file) != nil {
			delete(p.seen, id)
			continue
		}
		p.seen[id] = peer{file.Sequence, time.Now()}
	}
}

// Follow hears the other servers until ctx ends.
func (p *Peers) Follow(ctx context.Context) {
	after := func() int64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.revision
	}
	store.Follower{Prefix: peerPrefix, What: "other servers", After: after, Apply: p.apply, Rebuild: p.rebuild, Logger: p.log}.Run(ctx, p.store)
}

// Waiting are those who are connected, here or to another living server, and have not yet shown
// that they have the bundle.
func (p *Peers) Waiting(sequence uint64) []string {
	names := slices.Clone(p.acked(sequence))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.seen)) {
		if have := p.seen[id]; id != p.self && have.sequence < sequence && time.Since(have.heard) < livesFor {
			names = append(names, "server "+id)
		}
	}
	return names
}

// Tell lets the other servers know what we and our agents have seen, until ctx ends: when that
// changes, and every sayEvery as a sign of life.
func (p *Peers) Tell(ctx context.Context, r *Replica) {
	var word *uint64 // the sequence number that we gave; nil: none yet
	var said time.Time
	for ctx.Err() == nil {
		b, changed := r.Bundle()
		seen := b.Exists() && len(p.acked(b.Sequence)) == 0
		if seen && (word == nil || *word != b.Sequence) {
			word, said = &b.Sequence, time.Time{}
		}
		if word != nil && time.Since(said) >= sayEvery {
			p.say(ctx, *word)
			said = time.Now()
		}
		pause := sayEvery
		if b.Exists() && !seen {
			pause = askEvery
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(pause):
		}
	}
	p.commit(context.Background(), store.Txn{Deletes: []string{peerPrefix + p.self}}) // nobody need wait for us
}

func (p *Peers) say(ctx context.Context, sequence uint64) {
	value, err := json.Marshal(peerFile{sequence, time.Now().UTC()})
	if err != nil {
		p.log.Error("encode what this server has seen", "error", err)
		return
	}
	p.commit(ctx, store.Txn{Puts: []store.KV{{Key: peerPrefix + p.self, Value: value}}})
}

// commit tries once; the next word comes soon.
func (p *Peers) commit(ctx context.Context, txn store.Txn) {
	ctx, cancel := context.WithTimeout(ctx, sayTimeout)
	defer cancel()
	txn.Essential = true
	if _, err := p.store.Commit(ctx, txn); err != nil && ctx.Err() == nil {
		p.log.Debug("can not tell other servers what this one has seen; trying again", "error", err)
	}
}
