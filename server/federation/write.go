// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

const (
	conflictTrys = 20
	// conflictWait is how much longer, at the most, each try holds back than the one before.
	conflictWait = 5 * time.Millisecond
)

// Result of one item of a batch.
type Result[T any] struct {
	TrustDomain spiffeid.TrustDomain
	// Value as stored (or as it was, when deleted); zero with an error.
	Value T
	Err   error
}

// DeleteMode says what becomes of entries that federate with a trust domain whose bundle is deleted.
type DeleteMode int

// The values are those of the SPIRE API.
const (
	Restrict   DeleteMode = iota // refuse to delete the bundle
	Delete                       // delete the entries too
	Dissociate                   // take the trust domain out of them
)

// BundleUpdate changes one bundle. Change edits a copy whose slices it must replace, not write into.
type BundleUpdate struct {
	TrustDomain spiffeid.TrustDomain
	Change      func(*Bundle) error
}

// NewRelationship is a relationship with, if it is not nil, its first bundle, which replaces the one
// that is known.
type NewRelationship struct {
	Relationship
	Bundle *Bundle
}

// RelationshipUpdate changes one relationship; Bundle as in NewRelationship.
type RelationshipUpdate struct {
	TrustDomain spiffeid.TrustDomain
	Change      func(*Relationship) error
	Bundle      *Bundle
}

// CreateBundles stores bundles that are not known yet, each on its own merits.
func (r *Registry) CreateBundles(ctx context.Context, bs []*Bundle) []Result[*Bundle] {
	return each(bs, func(b *Bundle) (spiffeid.TrustDomain, *Bundle, error) {
		return b.TrustDomain, b, r.edit(ctx, func(t *store.Txn) error {
			if r.bundles[b.TrustDomain].value != nil {
				return fmt.Errorf("bundle of trust domain %q %w", b.TrustDomain.Name(), ErrExists)
			}
			return r.planBundle(t, b)
		})
	})
}

// SetBundles stores bundles, whether they are known or not. Sequence is the caller's.
func (r *Registry) SetBundles(ctx context.Context, bs []*Bundle) []Result[*Bundle] {
	return each(bs, func(b *Bundle) (spiffeid.TrustDomain, *Bundle, error) {
		return b.TrustDomain, b, r.edit(ctx, func(t *store.Txn) error { return r.planBundle(t, b) })
	})
}

// UpdateBundles changes bundles that are known.
func (r *Registry) UpdateBundles(ctx context.Context, us []BundleUpdate) []Result[*Bundle] {
	return each(us, func(u BundleUpdate) (spiffeid.TrustDomain, *Bundle, error) {
		var b *Bundle
		err := r.edit(ctx, func(t *store.Txn) error {
			if err := r.notOwn(u.TrustDomain); err != nil {
				return err
			}
			old := r.bundles[u.TrustDomain].value
			if old == nil {
				return fmt.Errorf("bundle of trust domain %q %w", u.TrustDomain.Name(), ErrNotFound)
			}
			changed := *old
			b = &changed
			if err := u.Change(b); err != nil {
				return err
			}
			b.TrustDomain = u.TrustDomain
			return r.planBundle(t, b)
		})
		return u.TrustDomain, b, err
	})
}

// DeleteBundles forgets bundles. Relationships stay, so a bundle with one is fetched again.
func (r *Registry) DeleteBundles(ctx context.Context, tds []spiffeid.TrustDomain, mode DeleteMode) []Result[*Bundle] {
	return each(tds, func(td spiffeid.TrustDomain) (spiffeid.TrustDomain, *Bundle, error) {
		b, err := r.deleteBundle(ctx, td, mode)
		return td, b, err
	})
}

// deleteBundle unlinks the entries first, so that a crash leaves no entry whose bundle is gone, and
// again at the end, when no more can be linked. With Restrict an entry that another server links at
// this very moment may stay; it waits for the bundle to come back.
func (r *Registry) deleteBundle(ctx context.Context, td spiffeid.TrustDomain, mode DeleteMode) (*Bundle, error) {
	if err := r.notOwn(td); err != nil {
		return nil, err
	}
	if !r.HasBundle(td) {
		return nil, fmt.Errorf("bundle of trust domain %q %w", td.Name(), ErrNotFound)
	}
	unlink := func() error { return r.cfg.Entries.Unlink(ctx, td, mode == Delete) }
	if mode == Restrict {
		if n := r.cfg.Entries.FederatedWith(td); n > 0 {
			return nil, fmt.Errorf("%w: %d of them; dissociate or delete them", ErrFederated, n)
		}
		unlink = func() error { return nil }
	}
	if err := unlink(); err != nil {
		return nil, err
	}
	var old *Bundle
	err := r.edit(ctx, func(t *store.Txn) error {
		if old = r.bundles[td].value; old == nil {
			return fmt.Errorf("bundle of trust domain %q %w", td.Name(), ErrNotFound)
		}
		t.Compares = append(t.Compares, unchanged(r, r.bundles, bundlePrefix, td))
		t.Deletes = append(t.Deletes, bundlePrefix+td.Name())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return old, unlink()
}

// CreateRelationships stores relationships with trust domains that have none; their bundles are
// fetched at once.
func (r *Registry) CreateRelationships(ctx context.Context, ns []NewRelationship) []Result[Relationship] {
	return each(ns, func(n NewRelationship) (spiffeid.TrustDomain, Relationship, error) {
		return n.TrustDomain, n.Relationship, r.edit(ctx, func(t *store.Txn) error {
			if _, ok := r.relationships[n.TrustDomain]; ok {
				return fmt.Errorf("federation relationship with trust domain %q %w", n.TrustDomain.Name(), ErrExists)
			}
			return r.planRelationship(t, n.Relationship, n.Bundle)
		})
	})
}

// UpdateRelationships changes relationships; their bundles are fetched at once.
func (r *Registry) UpdateRelationships(ctx context.Context, us []RelationshipUpdate) []Result[Relationship] {
	return each(us, func(u RelationshipUpdate) (spiffeid.TrustDomain, Relationship, error) {
		var rel Relationship
		err := r.edit(ctx, func(t *store.Txn) error {
			old, ok := r.relationships[u.TrustDomain]
			if !ok {
				return fmt.Errorf("federation relationship with trust domain %q %w", u.TrustDomain.Name(), ErrNotFound)
			}
			rel = old.value
			if err := u.Change(&rel); err != nil {
				return err
			}
			rel.TrustDomain = u.TrustDomain
			return r.planRelationship(t, rel, u.Bundle)
		})
		return u.TrustDomain, rel, err
	})
}

// DeleteRelationships ends relationships. The bundles stay as they are, as in SPIRE; DeleteBundles
// removes them.
func (r *Registry) DeleteRelationships(ctx context.Context, tds []spiffeid.TrustDomain) []Result[Relationship] {
	return each(tds, func(td spiffeid.TrustDomain) (spiffeid.TrustDomain, Relationship, error) {
		var old Relationship
		err := r.edit(ctx, func(t *store.Txn) error {
			rec, ok := r.relationships[td]
			if !ok {
				return fmt.Errorf("federation relationship with trust domain %q %w", td.Name(), ErrNotFound)
			}
			old = rec.value
			t.Compares = append(t.Compares, unchanged(r, r.relationships, relationshipPrefix, td))
			t.Deletes = append(t.Deletes, relationshipPrefix+td.Name(), pollPrefix+td.Name())
			return nil
		})
		return td, old, err
	})
}

func each[I, T any](items []I, do func(I) (spiffeid.TrustDomain, T, error)) []Result[T] {
	out := make([]Result[T], len(items))
	for i, item := range items {
		td, value, err := do(item)
		out[i] = Result[T]{TrustDomain: td, Err: err}
		if err == nil {
			out[i].Value = value
		}
	}
	return out
}

// edit commits what plan makes of the replica, which is locked for reading meanwhile, and waits for
// the replica to show it. It is planned again when another server was faster.
func (r *Registry) edit(ctx context.Context, plan func(*store.Txn) error) error {
	var conflict *store.ConflictError
	for try := range conflictTrys {
		time.Sleep(time.Duration(rand.Float64() * float64(try) * float64(conflictWait)))
		var txn store.Txn
		r.mu.RLock()
		err := plan(&txn)
		r.mu.RUnlock()
		if err != nil || len(txn.Puts)+len(txn.Deletes) == 0 {
			return err
		}
		revision, err := r.cfg.Store.Commit(ctx, txn)
		if err == nil {
			return r.seen(ctx, revision)
		}
		if !errors.As(err, &conflict) {
			return err
		}
		if err := r.seen(ctx, conflict.Revision); err != nil {
			return err
		}
	}
	return conflict
}

// unchanged holds if the store has for the key what the replica shows, whose lock is held. Where it
// shows nothing there may be a value that can not be read; that one may be overwritten.
func unchanged[T any](r *Registry, m records[T], prefix string, td spiffeid.TrustDomain) store.Compare {
	if rec, ok := m[td]; ok {
		return store.Unchanged(prefix+td.Name(), rec.revision)
	}
	return store.NotAfter(prefix+td.Name(), r.revision)
}

func (r *Registry) planBundle(t *store.Txn, b *Bundle) error {
	if err := r.notOwn(b.TrustDomain); err != nil {
		return err
	}
	if err := b.Validate(); err != nil {
		return err
	}
	value, err := encodeBundle(b)
	if err != nil {
		return err
	}
	t.Compares = append(t.Compares, unchanged(r, r.bundles, bundlePrefix, b.TrustDomain))
	t.Puts = append(t.Puts, store.KV{Key: bundlePrefix + b.TrustDomain.Name(), Value: value})
	return nil
}

func (r *Registry) planRelationship(t *store.Txn, rel Relationship, b *Bundle) error {
	if err := r.notOwn(rel.TrustDomain); err != nil {
		return err
	}
	if err := rel.Validate(); err != nil {
		return err
	}
	if b != nil {
		if b.TrustDomain != rel.TrustDomain {
			return fmt.Errorf("%w bundle: it is of trust domain %q, the federation relationship of %q", ErrInvalid, b.TrustDomain.Name(), rel.TrustDomain.Name())
		}
		if err := r.planBundle(t, b); err != nil {
			return err
		}
	}
	value, err := encodeRelationship(rel)
	if err != nil {
		return fmt.Errorf("encode the federation relationship: %w", err)
	}
	t.Compares = append(t.Compares, unchanged(r, r.relationships, relationshipPrefix, rel.TrustDomain))
	t.Puts = append(t.Puts, store.KV{Key: relationshipPrefix + rel.TrustDomain.Name(), Value: value})
	t.Deletes = append(t.Deletes, pollPrefix+rel.TrustDomain.Name()) // due at once
	return nil
}

func (r *Registry) notOwn(td spiffeid.TrustDomain) error {
	if td == r.cfg.TrustDomain {
		return fmt.Errorf("%q %w", td.Name(), ErrOwn)
	}
	return nil
}
