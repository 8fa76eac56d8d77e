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

// Config of a Registry.
type Config struct {
	Store  Store
	Logger *slog.Logger
	// ReadmitByAttestation lets a full attestation that passes lift a suspension by ByDrift or
	// ByPolicy; otherwise only an operator does.
	ReadmitByAttestation bool
	// Now defaults to time.Now.
	Now func() time.Time
}

// Registry holds all nodes: reads are answered from memory, writes are transactions on the
// store and return when memory shows them. Its methods are safe for concurrent use.
type Registry struct {
	cfg   Config
	nodes replica[*Node]

	mu        sync.RWMutex
	listeners map[int]func(spiffeid.ID)
	nextID    int
}

// Open reads all nodes and follows their changes until Close.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Registry{cfg: cfg, listeners: map[int]func(spiffeid.ID){}}
	r.nodes = replica[*Node]{store: cfg.Store, log: cfg.Logger, prefix: nodePrefix, what: "nodes", decode: decodeNode, changed: r.tell}
	if err := r.nodes.open(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Close stops following the store.
func (r *Registry) Close() { r.nodes.close() }

// decodeNode reads a stored node. Before there were states, a node was banned or admitted.
func decodeNode(key string, value []byte) (*Node, error) {
	var stored struct {
		Node
		Banned bool `json:"banned"`
	}
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, err
	}
	n := &stored.Node
	if n.ID.IsZero() || nodeKey(n.ID) != key {
		return nil, fmt.Errorf("the node %q is not the one that its key names", n.ID)
	}
	switch {
	case n.State != "":
	case stored.Banned:
		n.Standing = Standing{State: StateBanned, Since: n.AttestedAt}
	default:
		n.Standing = Standing{State: StateAdmitted, Since: n.AttestedAt, By: ByAttestation}
	}
	return n, nil
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
func (r *Registry) tell(changed []*Node) {
	ids := make([]spiffeid.ID, len(changed))
	for i, n := range changed {
		ids[i] = n.ID
	}
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
	if n := r.nodes.get(nodeKey(id)).value; n != nil && n.ID == id { // trust domains are not in keys
		return n
	}
	return nil
}

// current returns the node as the store has it now, or a zero row.
func (r *Registry) current(ctx context.Context, id spiffeid.ID) (row[*Node], error) {
	rec, err := r.nodes.current(ctx, nodeKey(id))
	if err != nil || rec.value == nil || rec.value.ID != id {
		return row[*Node]{}, err
	}
	return rec, nil
}

// conflictTries bounds how often a write starts over because another writer was faster.
const conflictTries = 20

// change edits one record. edit gets a copy of the present node, or nil, and returns the new
// one, or nil to delete it; it is called again when another writer was faster. change returns
// the node as stored, or the deleted one, when Get shows it. The puts are written with it.
func (r *Registry) change(ctx context.Context, id spiffeid.ID, essential bool, edit func(*Node) (*Node, error), puts ...store.KV) (*Node, error) {
	for range conflictTries {
		rec, err := r.current(ctx, id)
		if err != nil {
			return nil, err
		}
		old := rec.value
		if old != nil {
			clone := *old
			clone.History = slices.Clone(old.History)
			old = &clone
		}
		next, err := edit(old)
		if err != nil {
			return nil, err
		}
		if next == nil && old == nil {
			return nil, nil
		}
		txn := store.Txn{Compares: []store.Compare{store.Unchanged(nodeKey(id), rec.revision)}, Puts: puts, Essential: essential}
		if next == nil {
			txn.Deletes = []string{nodeKey(id)}
		} else {
			value, err := json.Marshal(next)
			if err != nil {
				return nil, fmt.Errorf("encoding the node %s: %w", id, err)
			}
			txn.Puts = append(slices.Clone(puts), store.KV{Key: nodeKey(id), Value: value})
		}
		revision, err := r.cfg.Store.Commit(ctx, txn)
		switch {
		case errors.Is(err, store.ErrConflict):
			continue
		case err != nil:
			return nil, err
		case next == nil:
			return old, r.nodes.seen(ctx, revision)
		}
		return next, r.nodes.seen(ctx, revision)
	}
	return nil, fmt.Errorf("writing the node %s: other writers were faster %d times: %w", id, conflictTries, store.ErrConflict)
}
