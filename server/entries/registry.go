// SPDX-License-Identifier: Apache-2.0

// Package entries knows which registration entries exist and which of them an agent is
// authorised for. Reads are answered from a replica in memory; writes are transactions on the
// store and return when the replica has seen them.
//
// Keys in the store:
//
//	e/<UUIDv7>          one entry as JSON; keys ascend, so their order is the creation order
//	i/<id>              the e/ key of an entry whose id its caller chose
//	g/<sha256 parent>   guard of a parent: written with every create, update and delete below
//	                    it, and compared with the replica's revision. So what the replica says
//	                    about a parent's entries is exact whenever a write succeeds, whichever
//	                    server wrote before.
package entries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/store"
)

const (
	entryPrefix = "e/"
	idPrefix    = "i/"
	guardPrefix = "g/"
)

// Store is what the registry needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// Config of a Registry.
type Config struct {
	Store       Store
	TrustDomain spiffeid.TrustDomain
	// HasBundle reports whether the bundle of a federated trust domain is known; nil: none is.
	HasBundle func(spiffeid.TrustDomain) bool
	Logger    *slog.Logger
	Now       func() time.Time
}

// Registry holds all entries. Its methods are safe for concurrent use. The entries that it
// returns are shared: they must not be changed.
type Registry struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}

	writing sync.Mutex // one writer at a time; other servers are held off by guards

	mu      sync.RWMutex
	replica *replica
	moved   chan struct{} // closed and replaced when the replica's revision rises
	feeds   feeds
}

// Open reads all entries and follows their changes until Close.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.HasBundle == nil {
		cfg.HasBundle = func(spiffeid.TrustDomain) bool { return false }
	}
	r := &Registry{cfg: cfg, done: make(chan struct{}), moved: make(chan struct{}), replica: newReplica()}
	if err := r.rebuild(ctx); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go r.follow(run)
	return r, nil
}

// Close stops following the store.
func (r *Registry) Close() {
	r.cancel()
	<-r.done
}

// rebuild replaces the replica by the store's present content.
func (r *Registry) rebuild(ctx context.Context) error {
	kvs, revision, err := r.cfg.Store.Snapshot(ctx, entryPrefix)
	if err != nil {
		return fmt.Errorf("read the entries: %w", err)
	}
	fresh := newReplica()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kv := range kvs {
		if old := r.replica.byKey(kv.Key); old != nil && old.revision == kv.Revision {
			fresh.put(old) // the same pointer tells feeds that nothing changed
			continue
		}
		if rec := r.decode(kv.Key, kv.Value, kv.Revision); rec != nil {
			fresh.intern(rec.entry)
			fresh.put(rec)
		}
	}
	r.replica = fresh
	r.advance(revision)
	r.feeds.wakeAll()
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
	for _, c := range batch.Changes {
		old := r.replica.byKey(c.Key)
		if old != nil {
			r.feeds.wake(old.entry.ParentID)
			r.replica.remove(old)
		}
		if c.Value == nil {
			continue
		}
		if rec := r.decode(c.Key, c.Value, c.Revision); rec != nil {
			r.replica.intern(rec.entry)
			r.replica.put(rec)
			r.feeds.wake(rec.entry.ParentID)
		}
	}
	r.advance(batch.Revision)
}

// advance is called with the lock held.
func (r *Registry) advance(revision int64) {
	r.replica.revision = max(r.replica.revision, revision)
	close(r.moved)
	r.moved = make(chan struct{})
}

// decode returns nil for a value that is not an entry: it must not take the others down.
func (r *Registry) decode(key string, value []byte, revision int64) *record {
	e := new(selectors.Entry)
	if err := json.Unmarshal(value, e); err != nil {
		r.cfg.Logger.Error("a stored entry can not be read and is ignored", "key", key, "error", err)
		return nil
	}
	return &record{key: key, revision: revision, entry: e}
}

// Revision of the store that the replica shows.
func (r *Registry) Revision() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.replica.revision
}

// seen waits until the replica shows the given revision.
func (r *Registry) seen(ctx context.Context, revision int64) error {
	for {
		r.mu.RLock()
		at, moved := r.replica.revision, r.moved
		r.mu.RUnlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-r.done:
			return errors.New("the entry registry is closed")
		case <-ctx.Done():
			return fmt.Errorf("wait for the replica to reach revision %d: %w", revision, ctx.Err())
		}
	}
}

// Get returns the entry with the given id, or nil.
func (r *Registry) Get(id string) *selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if rec := r.replica.byID[id]; rec != nil {
		return rec.entry
	}
	return nil
}

// BySPIFFEID returns the entries that give the identity, under any parent.
func (r *Registry) BySPIFFEID(id spiffeid.ID) []*selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.replica.bySPIFFEID[id].inOrder()
}
