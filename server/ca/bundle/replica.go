// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/assay-id/assay/server/store"
)

// Store is what a replica needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// Replica is the bundle in memory. Make one with Open.
type Replica struct {
	store    Store
	log      *slog.Logger
	onChange func(Bundle)

	mu      sync.RWMutex
	bundle  Bundle
	shown   int64 // the store revision of bundle
	changed chan struct{}
}

// Open reads the bundle from the store. onChange sees every bundle, in order, before others do.
func Open(ctx context.Context, s Store, log *slog.Logger, onChange func(Bundle)) (*Replica, error) {
	r := &Replica{store: s, log: log, onChange: onChange, changed: make(chan struct{})}
	return r, r.rebuild(ctx)
}

// Bundle returns the present bundle and a channel that is closed when it changes.
func (r *Replica) Bundle() (Bundle, <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.bundle, r.changed
}

// rebuild reads the bundle from the store.
func (r *Replica) rebuild(ctx context.Context) error {
	changes, revision, err := snapshot(ctx, r.store, prefix)
	if err != nil {
		return fmt.Errorf("read the trust bundle: %w", err)
	}
	r.show(true, store.Batch{Revision: revision, Changes: changes})
	return nil
}

func snapshot(ctx context.Context, s Store, prefix string) ([]store.Change, int64, error) {
	kvs, revision, err := s.Snapshot(ctx, prefix)
	changes := make([]store.Change, 0, len(kvs))
	for _, kv := range kvs {
		changes = append(changes, store.Change(kv))
	}
	return changes, revision, err
}

// Follow keeps the bundle up to date until ctx ends.
func (r *Replica) Follow(ctx context.Context) {
	after := func() int64 {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.shown
	}
	apply := func(batch store.Batch) { r.show(false, batch) }
	store.Follower{Prefix: prefix, What: "authorities of the trust bundle", After: after, Apply: apply, Rebuild: r.rebuild, Logger: r.log}.Run(ctx, r.store)
}

// show makes the bundle with the changes the present one, unless it is older.
func (r *Replica) show(whole bool, batch store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if batch.Revision < r.shown || !whole && batch.Revision == r.shown {
		return
	}
	next, unread := r.bundle.with(whole, batch.Changes)
	for key, err := range unread {
		r.log.Error("an authority in the store can not be read and is ignored", "key", key, "error", err)
	}
	r.bundle, r.shown = next, batch.Revision
	r.onChange(next)
	close(r.changed)
	r.changed = make(chan struct{})
}

// Plan is a change, given the present bundle: what to write besides the sequence number.
type Plan func(b Bundle) (store.Txn, error)

const conflictTries = 10

// Edit commits a change of the bundle with the next sequence number, and waits until Bundle shows
// it; the change is planned again when another server was faster. A plan that writes nothing of the
// bundle changes no sequence number, and one that writes nothing at all commits nothing. It returns
// the revision of the change, or 0. After an error of the store the change may have happened.
func (r *Replica) Edit(ctx context.Context, plan Plan) (int64, error) {
	var err error
	for range conflictTries {
		b, _ := r.Bundle()
		var txn store.Txn
		if txn, err = plan(b); err != nil || len(txn.Puts)+len(txn.Deletes) == 0 {
			return 0, err
		}
		txn.Essential = true // without it nothing can be signed
		effective := effective(txn)
		if effective {
			txn.Puts = append(txn.Puts, store.KV{Key: sequenceKey, Value: strconv.AppendUint(nil, b.Next(), 10)})
		}
		txn.Compares = append(txn.Compares, store.Unchanged(sequenceKey, b.sequenceRevision))
		var revision int64
		if revision, err = r.store.Commit(ctx, txn); err == nil {
			if effective {
				err = r.seen(ctx, revision)
			}
			return revision, err
		}
		if !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
		if err := r.rebuild(ctx); err != nil {
			return 0, err
		}
	}
	return 0, err
}

// effective reports whether the transaction changes the bundle.
func effective(txn store.Txn) bool {
	for _, p := range txn.Puts {
		if strings.HasPrefix(p.Key, prefix) {
			return true
		}
	}
	for _, key := range txn.Deletes {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// seen waits until Bundle shows the revision.
func (r *Replica) seen(ctx context.Context, revision int64) error {
	return store.Await(ctx, "authorities of the trust bundle", revision, nil, func() (int64, <-chan struct{}) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.shown, r.changed
	})
}
