// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/store"
)

const (
	maxPrepare  = 30 * 24 * time.Hour
	maxActivate = 7 * 24 * time.Hour
)

// Rotate does whatever is due now: prepare, activate, prune.
func (c *CA) Rotate(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	now := c.cfg.Now()
	var failed error
	for k := range bundle.Kinds {
		failed = errors.Join(failed, c.rotate(ctx, k, now))
	}
	return errors.Join(failed, c.prune(ctx, now))
}

// begin takes the turn to change our authorities, and finds out what became of a write that failed.
// The caller unlocks op, unless there is an error.
func (c *CA) begin(ctx context.Context) error {
	c.op.Lock()
	if !c.unsure {
		return nil
	}
	err := c.load(ctx)
	if err != nil {
		c.op.Unlock()
	}
	return err
}

func (c *CA) rotate(ctx context.Context, k Kind, now time.Time) error {
	s := c.slotsOf(k)
	b, _ := c.Bundle()
	signs := c.signing[k].Load()
	if signs != nil && !signs.validAt(now) {
		c.cfg.Logger.Warn("the authority that signs is not valid now; another takes its place", "kind", k, "authority_id", signs.id, "valid_from", signs.notBefore, "expires_at", signs.notAfter, "now", now)
		signs = nil
	}
	next := s.prepared()
	if next != nil && (!next.validAt(now) || !b.Vouches(next.anchor)) {
		next = nil
	}
	if next == nil && (signs == nil || signs.left(now) <= min(signs.life()/2, maxPrepare)) {
		var err error
		if next, err = c.prepare(ctx, k, now); err != nil {
			return err
		}
	}
	if next == nil || signs != nil && signs.left(now) > min(signs.life()/6, maxActivate) {
		return nil
	}
	_, err := c.activate(ctx, k, now)
	return err
}

// prepare makes the next authority: first its key, then, in one transaction, the journal and the
// bundle. It takes the place of a prepared or old one, whose key goes.
func (c *CA) prepare(ctx context.Context, k Kind, now time.Time) (*authority, error) {
	a, roots, err := c.newAuthority(ctx, k, now)
	if err != nil {
		return nil, fmt.Errorf("prepare a %s authority: %w", k, err)
	}
	var above []KeyAuthority
	if k != X509 {
		if above, err = c.publishAbove(ctx, k, a.keyAuthority()); err != nil {
			return nil, err
		}
	}
	s := c.slotsOf(k)
	replaced := s.next
	s.next, s.old = a, false
	err = c.write(ctx, k, s, func(b Bundle, txn *store.Txn) error {
		if err := a.announce(b, txn, roots, above); err != nil {
			return err
		}
		a.sequence = b.Sequence // whoever has it knows the upstream's root
		if len(txn.Puts) > 0 {
			a.sequence = b.Next()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("publish %s authority %s: %w", k, a.id, err)
	}
	c.spare[k] = nil
	c.forget(ctx, replaced)
	c.cfg.Logger.Info("prepared an authority", "kind", k, "authority_id", a.id, "expires_at", a.notAfter, "sequence", a.sequence)
	return a, nil
}

// announce plans for the authority's place in the bundle.
func (a *authority) announce(b Bundle, txn *store.Txn, roots []*x509.Certificate, above []KeyAuthority) error {
	if a.kind == X509 {
		return addCerts(b, txn, roots)
	}
	return addKeys(b, txn, a.kind, append(above, a.keyAuthority()))
}

// write makes s the slots of a kind, durably, together with a change of the bundle.
func (c *CA) write(ctx context.Context, k Kind, s slots, change func(Bundle, *store.Txn) error) error {
	revision, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, _ error) {
		if err := change(b, &txn); err != nil {
			return txn, err
		}
		return txn, c.put(&txn, k, s)
	})
	if err != nil {
		c.unsure = true
		return err
	}
	c.journal = revision
	c.set(k, s)
	return nil
}

func (c *CA) set(k Kind, s slots) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots[k] = s
	c.chooseSigners()
}

// forget deletes the key of an authority that has left the journal.
func (c *CA) forget(ctx context.Context, a *authority) {
	if a == nil {
		return
	}
	if err := c.cfg.Keys.Delete(ctx, a.keyName); err != nil {
		c.cfg.Logger.Warn("a key that is no longer used can not be deleted; the next start tries again", "key", a.keyName, "error", err)
	}
}

// activate signs with the prepared authority from now on, unless there is somebody to wait for. It
// commits only if the bundle still vouches for it at that moment.
func (c *CA) activate(ctx context.Context, k Kind, now time.Time) (waiting []string, err error) {
	s := c.slotsOf(k)
	a := s.prepared()
	if waiting = c.peers.Waiting(a.sequence); len(waiting) > 0 {
		if now.Before(a.published.Add(c.cfg.AckBound)) {
			return waiting, nil
		}
		c.cfg.Logger.Warn("an authority begins to sign though not all who are connected have shown that they know it",
			"kind", k, "authority_id", a.id, "published", a.published, "not_waited_for", waiting[:min(len(waiting), 20)], "count", len(waiting))
	}
	s.current, s.next, s.old = a, s.current, s.current != nil
	err = c.write(ctx, k, s, func(b Bundle, _ *store.Txn) error {
		if !b.Vouches(a.anchor) {
			return errors.New("the trust bundle no longer has it; prepare another")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("activate %s authority %s: %w", k, a.id, err)
	}
	c.cfg.Logger.Info("activated an authority", "kind", k, "authority_id", a.id, "expires_at", a.notAfter)
	return nil, nil
}
