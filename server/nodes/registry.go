// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

// Store is what the registry needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// Config of a Registry.
type Config struct {
	Store  Store
	Logger *slog.Logger
	// Now defaults to time.Now.
	Now func() time.Time
}

// record is one stored node; neither it nor its node changes.
type record struct {
	node     *Node
	revision int64 // of the key's last change
}

// Registry holds all nodes: reads are answered from memory, writes are transactions on the
// store and return when memory shows them. Its methods are safe for concurrent use.
type Registry struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.RWMutex
	revision  int64
	records   map[string]record // by key
	moved     chan struct{}     // closed and replaced when revision rises
	listeners map[int]func(spiffeid.ID)
	nextID    int
}

// Open reads all nodes and follows their changes until Close.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Registry{
		cfg: cfg, done: make(chan struct{}), moved: make(chan struct{}),
		records: map[string]record{}, listeners: map[int]func(spiffeid.ID){},
	}
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

// rebuild replaces the records by the store's present content.
func (r *Registry) rebuild(ctx context.Context) error {
	kvs, revision, err := r.cfg.Store.Snapshot(ctx, nodePrefix)
	if err != nil {
		return fmt.Errorf("reading the nodes: %w", err)
	}
	fresh := make(map[string]record, len(kvs))
	for _, kv := range kvs {
		if rec, err := decode(kv.Key, kv.Value, kv.Revision); err != nil {
			r.cfg.Logger.Error("a stored node can not be read and is ignored", "key", kv.Key, "error", err)
		} else {
			fresh[kv.Key] = rec
		}
	}
	r.mu.Lock()
	var changed []spiffeid.ID
	for key, rec := range fresh {
		if r.records[key].revision != rec.revision {
			changed = append(changed, rec.node.ID)
		}
	}
	for key, rec := range r.records {
		if _, ok := fresh[key]; !ok {
			changed = append(changed, rec.node.ID)
		}
	}
	r.records = fresh
	r.advance(revision)
	r.mu.Unlock()
	r.tell(changed)
	return nil
}

// follow keeps the records up to date.
func (r *Registry) follow(ctx context.Context) {
	defer close(r.done)
	after := func() int64 {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.revision
	}
	store.Follower{Prefix: nodePrefix, What: "nodes", After: after, Apply: r.apply, Rebuild: r.rebuild, Logger: r.cfg.Logger}.Run(ctx, r.cfg.Store)
}

func (r *Registry) apply(batch store.Batch) {
	var changed []spiffeid.ID
	r.mu.Lock()
	for _, c := range batch.Changes {
		if old, ok := r.records[c.Key]; ok {
			changed = append(changed, old.node.ID)
			delete(r.records, c.Key)
		}
		if c.Value == nil {
			continue
		}
		rec, err := decode(c.Key, c.Value, c.Revision)
		if err != nil {
			r.cfg.Logger.Error("a stored node can not be read and is ignored", "key", c.Key, "error", err)
			continue
		}
		r.records[c.Key] = rec
		changed = append(changed, rec.node.ID)
	}
	r.advance(batch.Revision)
	r.mu.Unlock()
	r.tell(changed)
}

// advance is called with the lock held.
func (r *Registry) advance(revision int64) {
	r.revision = max(r.revision, revision)
	close(r.moved)
	r.moved = make(chan struct{})
}

func decode(key string, value []byte, revision int64) (record, error) {
	n := new(Node)
	if err := json.Unmarshal(value, n); err != nil {
		return record{}, err
	}
	if n.ID.IsZero() || nodeKey(n.ID) != key {
		return record{}, fmt.Errorf("the node %q is not the one that its key names", n.ID)
	}
	return record{n, revision}, nil
}

// OnChange calls f with the ID of each node that is created, changed or deleted, after Get
// shows the change. f must not block and must not call OnChange. Stop ends it; a call may be under way then.
func (r *Registry) OnChange(f func(agent spiffeid.ID)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.nextID
	r.nextID++
	r.listeners[id] = f
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.listeners, id)
	}
}

// tell calls the listeners, once for each node.
func (r *Registry) tell(ids []spiffeid.ID) {
	slices.SortFunc(ids, func(a, b spiffeid.ID) int { return strings.Compare(a.String(), b.String()) })
	r.mu.RLock()
	fs := make([]func(spiffeid.ID), 0, len(r.listeners))
	for _, f := range r.listeners {
		fs = append(fs, f)
	}
	r.mu.RUnlock()
	for _, id := range slices.Compact(ids) {
		for _, f := range fs {
			f(id)
		}
	}
}

// Get returns the node, or nil.
func (r *Registry) Get(id spiffeid.ID) *Node {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.records[nodeKey(id)].node; n != nil && n.ID == id { // trust domains are not in keys
		return n
	}
	return nil
}

// current returns the node as the store has it now: another server may have changed it a
// moment ago.
func (r *Registry) current(ctx context.Context, id spiffeid.ID) (record, error) {
	kv, err := get(ctx, r.cfg.Store, nodeKey(id))
	if err != nil || kv == nil {
		return record{}, err
	}
	rec, err := decode(kv.Key, kv.Value, kv.Revision)
	if err != nil {
		return record{}, fmt.Errorf("reading the node %s: %w", id, err)
	}
	if rec.node.ID != id {
		return record{}, nil
	}
	return rec, nil
}

// get reads one key, or nil.
func get(ctx context.Context, s Store, key string) (*store.KV, error) {
	kvs, _, err := s.Snapshot(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		if kv.Key == key {
			return &kv, nil
		}
	}
	return nil, nil
}

// seen waits until memory shows the given revision of the store.
func (r *Registry) seen(ctx context.Context, revision int64) error {
	for {
		r.mu.RLock()
		at, moved := r.revision, r.moved
		r.mu.RUnlock()
		if at >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-r.done:
			return errors.New("the node registry is closed")
		case <-ctx.Done():
			return fmt.Errorf("waiting for the node registry to reach revision %d: %w", revision, ctx.Err())
		}
	}
}
