// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/assay-id/assay/server/store"
)

// Store is what this package needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// row is one stored value; neither changes.
type row[T any] struct {
	value    T
	revision int64 // of the key's last change; 0 is no such key
}

// replica holds what is stored under a prefix and follows its changes. Reads are answered from
// memory; a write is done when seen returns.
type replica[T any] struct {
	store  Store
	log    *slog.Logger
	prefix string
	what   string // is stored there, in the plural
	decode func(key string, value []byte) (T, error)
	// changed is told the old and the new values of what has changed, after get shows it.
	changed func([]T)

	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.RWMutex
	revision int64
	rows     map[string]row[T] // by key
	moved    chan struct{}     // closed and replaced when revision rises
}

// open reads everything and follows until close.
func (r *replica[T]) open(ctx context.Context) error {
	r.done, r.moved, r.rows = make(chan struct{}), make(chan struct{}), map[string]row[T]{}
	if err := r.rebuild(ctx); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		after := func() int64 {
			r.mu.RLock()
			defer r.mu.RUnlock()
			return r.revision
		}
		store.Follower{Prefix: r.prefix, What: r.what, After: after, Apply: r.apply, Rebuild: r.rebuild, Logger: r.log}.Run(run, r.store)
	}()
	return nil
}

func (r *replica[T]) close() {
	r.cancel()
	<-r.done
}

// rebuild replaces the rows by the store's present content.
func (r *replica[T]) rebuild(ctx context.Context) error {
	kvs, revision, err := r.store.Snapshot(ctx, r.prefix)
	if err != nil {
		return fmt.Errorf("reading the %s: %w", r.what, err)
	}
	fresh := make(map[string]row[T], len(kvs))
	for _, kv := range kvs {
		if v, ok := r.read(kv.Key, kv.Value); ok {
			fresh[kv.Key] = row[T]{v, kv.Revision}
		}
	}
	r.mu.Lock()
	var changed []T
	for key, now := range fresh {
		if r.rows[key].revision != now.revision {
			changed = append(changed, now.value)
		}
	}
	for key, old := range r.rows {
		if _, ok := fresh[key]; !ok {
			changed = append(changed, old.value)
		}
	}
	r.rows = fresh
	r.advance(revision)
	r.mu.Unlock()
	r.changed(changed)
	return nil
}

func (r *replica[T]) apply(batch store.Batch) {
	var changed []T
	r.mu.Lock()
	for _, c := range batch.Changes {
		if old, ok := r.rows[c.Key]; ok {
			changed = append(changed, old.value)
			delete(r.rows, c.Key)
		}
		if c.Value == nil {
			continue
		}
		if v, ok := r.read(c.Key, c.Value); ok {
			r.rows[c.Key] = row[T]{v, c.Revision}
			changed = append(changed, v)
		}
	}
	r.advance(batch.Revision)
	r.mu.Unlock()
	r.changed(changed)
}

func (r *replica[T]) read(key string, value []byte) (T, bool) {
	v, err := r.decode(key, value)
	if err != nil {
		r.log.Error("one of the stored "+r.what+" can not be read and is ignored", "key", key, "error", err)
	}
	return v, err == nil
}

// advance is called with the lock held.
func (r *replica[T]) advance(revision int64) {
	r.revision = max(r.revision, revision)
	close(r.moved)
	r.moved = make(chan struct{})
}

// get returns what memory has under the key, or the zero row.
func (r *replica[T]) get(key string) row[T] {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.rows[key]
}

// all returns the values that keep wants, in no order.
func (r *replica[T]) all(keep func(T) bool) []T {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []T
	for _, row := range r.rows {
		if keep(row.value) {
			out = append(out, row.value)
		}
	}
	return out
}

// current returns what the store has under the key now, or the zero row: another server may
// have changed it a moment ago.
func (r *replica[T]) current(ctx context.Context, key string) (row[T], error) {
	kv, err := get(ctx, r.store, key)
	if err != nil || kv == nil {
		return row[T]{}, err
	}
	v, err := r.decode(kv.Key, kv.Value)
	if err != nil {
		return row[T]{}, fmt.Errorf("reading %s of the %s: %w", key, r.what, err)
	}
	return row[T]{v, kv.Revision}, nil
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
func (r *replica[T]) seen(ctx context.Context, revision int64) error {
	return store.Await(ctx, r.what, revision, r.done, func() (int64, <-chan struct{}) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.revision, r.moved
	})
}
