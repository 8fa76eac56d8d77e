// SPDX-License-Identifier: Apache-2.0

// Package entries knows which registration entries exist and which of them an agent is
// authorised for. Reads are answered from a replica in memory; writes are transactions on the
// store and return when the replica has seen them.
//
// Keys in the store:
//
//	e/<UUIDv7>          one entry (replica.Encode); keys ascend, so their order is the creation order
//	id/<id>             the e/ key of an entry whose id its caller chose
//	g/<hash of parent>  guard of a parent: written with every create, update and delete below
//	                    it, and compared with the replica's revision. So what the replica says
//	                    about a parent's entries is exact whenever a write succeeds, whichever
//	                    server wrote before.
//	e/writer            who alone writes, without guards, or that several do (epoch)
package entries

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
	"github.com/assay-id/assay/server/store"
)

const (
	entryPrefix = "e/"
	idPrefix    = "id/"
	guardPrefix = "g/"
)

// Store is what the registry needs of server/store.
type Store interface {
	Scan(ctx context.Context, prefix string, each func([]store.KV)) (int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	CommitEach(ctx context.Context, common []store.Compare, txns []store.Txn) (int64, []error, error)
}

// Config of a Registry.
type Config struct {
	Store       Store
	TrustDomain spiffeid.TrustDomain
	// HasBundle reports whether the bundle of a federated trust domain is known; nil: none is.
	HasBundle func(spiffeid.TrustDomain) bool
	// ForeignSelectors are types of selectors that are stored as they come: other attestors than ours and
	// SPIRE's have them. Other selectors must be such as can exist (selectors.Selector.Known).
	ForeignSelectors []string
	Logger           *slog.Logger
	Now              func() time.Time
}

// Registry holds all entries. Its methods are safe for concurrent use.
type Registry struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}
	writer writer
	self   string // in the store's e/writer

	mu       sync.RWMutex
	replica  *replica.Replica
	revision int64         // of the store that the replica shows
	epoch    epoch         // as of that revision
	moved    chan struct{} // closed and replaced when the revision rises
	removed  replica.Graves
	feeds    feeds
	turns    chan struct{} // a feed's while it compares
}

// Open reads all entries and follows their changes until Close.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.HasBundle == nil {
		cfg.HasBundle = func(spiffeid.TrustDomain) bool { return false }
	}
	r := &Registry{cfg: cfg, self: uuid.NewString(), done: make(chan struct{}), moved: make(chan struct{}), replica: replica.New(cfg.TrustDomain)}
	r.turns = make(chan struct{}, runtime.GOMAXPROCS(0))
	r.writer.r, r.removed.Every, r.removed.Most = r, 1024, 1<<17
	r.claim(ctx)
	revision, err := cfg.Store.Scan(ctx, entryPrefix, func(kvs []store.KV) {
		for _, kv := range kvs {
			r.put(nil, kv.Key, kv.Value, kv.Revision)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the entries: %w", err)
	}
	r.revision = revision
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go r.follow(run)
	return r, nil
}

// Close stops following the store and ends the feeds.
func (r *Registry) Close() {
	r.cancel()
	<-r.done
	r.feeds.mu.Lock()
	defer r.feeds.mu.Unlock()
	for f := range r.feeds.all {
		f.wake()
	}
}

// rebuild brings the replica to the store's present content after changes were missed. Only
// follow writes to the replica, so between its two locks nothing changes.
func (r *Registry) rebuild(ctx context.Context) error {
	var batch store.Batch
	there := map[replica.Number]bool{}
	revision, err := r.cfg.Store.Scan(ctx, entryPrefix, func(kvs []store.KV) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		for _, kv := range kvs {
			n := r.find(kv.Key)
			if n != 0 {
				there[n] = true
			}
			if n == 0 || r.replica.Revision(n) != kv.Revision {
				batch.Changes = append(batch.Changes, store.Change(kv))
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read the entries: %w", err)
	}
	r.mu.RLock()
	for n := range r.replica.After(replica.Key{}) {
		if !there[n] {
			batch.Changes = append(batch.Changes, store.Change{Key: entryPrefix + r.replica.Key(n).String(), Revision: revision})
		}
	}
	r.mu.RUnlock()
	batch.Revision = revision
	r.apply(batch)
	return nil
}

// follow keeps the replica up to date.
func (r *Registry) follow(ctx context.Context) {
	defer close(r.done)
	store.Follower{Prefix: entryPrefix, What: "entries", After: r.Revision, Apply: r.apply, Rebuild: r.rebuild, Logger: r.cfg.Logger}.Run(ctx, r.cfg.Store)
}

func (r *Registry) apply(batch store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wave := r.feeds.wave(r.replica)
	defer wave.end()
	for _, c := range batch.Changes {
		n := r.find(c.Key)
		if n != 0 {
			wave.reach(n)
		}
		switch {
		case c.Value != nil:
			if n != 0 {
				clear(wave.seen) // a place that only the former entry had is free, and its number used again
			}
			r.put(wave, c.Key, c.Value, c.Revision)
		case n != 0:
			r.removed.Remove(r.replica, n, c.Revision)
		}
	}
	r.revision = max(r.revision, batch.Revision)
	r.removed.Sweep(r.replica, &r.feeds)
	close(r.moved)
	r.moved = make(chan struct{})
}

// put reads a stored entry into the replica. One that can not be read must not take the others
// down: it is not there.
func (r *Registry) put(wave *wave, key string, value []byte, revision int64) {
	if key == writerKey {
		r.epoch = epoch{string(value), revision}
		return
	}
	number, err := uuid.Parse(strings.TrimPrefix(key, entryPrefix))
	var e *selectors.Entry
	if err == nil {
		e, err = replica.Decode(r.cfg.TrustDomain, number, value)
	}
	if err != nil {
		r.cfg.Logger.Error("a stored entry can not be read and is ignored", "key", key, "error", err)
		if n := r.find(key); n != 0 {
			r.removed.Remove(r.replica, n, revision)
		}
		return
	}
	n := r.replica.Put(number, revision, e)
	if wave != nil {
		wave.reach(n)
	}
}

// find returns the record under a key of the store.
func (r *Registry) find(key string) replica.Number {
	number, err := uuid.Parse(strings.TrimPrefix(key, entryPrefix))
	if err != nil {
		return 0
	}
	return r.replica.Find(number)
}

// Revision of the store that the replica shows.
func (r *Registry) Revision() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.revision
}

// seen waits until the replica shows the given revision.
func (r *Registry) seen(ctx context.Context, revision int64) error {
	return store.Await(ctx, "entries", revision, r.done, func() (int64, <-chan struct{}) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.revision, r.moved
	})
}

// Get returns the entry with the given id, or nil.
func (r *Registry) Get(id string) *selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.replica.ByID(id); n != 0 {
		return r.replica.Entry(n)
	}
	return nil
}

// BySPIFFEID returns the entries that give the identity, under any parent.
func (r *Registry) BySPIFFEID(id spiffeid.ID) []*selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	named, _ := r.replica.Named(id)
	return r.replica.InOrder(slices.Collect(named))
}

// Authorized returns the entries that the agent with the given node selectors may hold, in
// creation order.
func (r *Registry) Authorized(agent spiffeid.ID, node selectors.Set) []*selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.replica.InOrder(r.replica.Authorized(agent, node))
}

// AuthorizedEntry returns the entry with the given id if the agent may hold it, or nil.
func (r *Registry) AuthorizedEntry(agent spiffeid.ID, node selectors.Set, id string) *selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.replica.ByID(id); n != 0 && r.replica.MayHold(agent, node, n) {
		return r.replica.Entry(n)
	}
	return nil
}
