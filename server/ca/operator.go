// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/store"
)

// State returns this server's authorities of a kind, or ErrNotReady.
func (c *CA) State(k Kind) (State, error) {
	s := c.slotsOf(k)
	if s.current == nil {
		return State{}, fmt.Errorf("%w: there is no active %s authority yet", ErrNotReady, k)
	}
	return State{s.current.describe(), s.prepared().describe(), s.former().describe()}, nil
}

// Prepare makes and publishes the next authority, in the place of the prepared or old one.
func (c *CA) Prepare(ctx context.Context, k Kind) (Authority, error) {
	if err := c.begin(ctx); err != nil {
		return Authority{}, err
	}
	defer c.op.Unlock()
	a, err := c.prepare(ctx, k, c.cfg.Now())
	if err != nil {
		return Authority{}, err
	}
	return *a.describe(), nil
}

// Activate signs with the prepared authority from now on. Before, it waits until all who are
// connected know it, up to AckBound after it was published; when ctx ends earlier, nothing changes.
func (c *CA) Activate(ctx context.Context, k Kind, id string) (Authority, error) {
	for {
		a, waiting, err := c.tryActivate(ctx, k, id)
		if err != nil || len(waiting) == 0 {
			return a, err
		}
		select {
		case <-ctx.Done():
			return Authority{}, fmt.Errorf("%s authority %s is not active yet: waiting for %d, among them %s: %w", k, id, len(waiting), waiting[0], ctx.Err())
		case <-time.After(ackEvery):
		}
	}
}

func (c *CA) tryActivate(ctx context.Context, k Kind, id string) (Authority, []string, error) {
	if err := c.begin(ctx); err != nil {
		return Authority{}, nil, err
	}
	defer c.op.Unlock()
	s := c.slotsOf(k)
	switch {
	case id == "":
		return Authority{}, nil, fmt.Errorf("%w: no authority ID provided", ErrInvalid)
	case s.next == nil || s.next.id != id:
		return Authority{}, nil, fmt.Errorf("%w: unexpected authority ID", ErrInvalid)
	case s.old:
		return Authority{}, nil, errors.New("only prepared authorities can be activated; prepare one")
	}
	waiting, err := c.activate(ctx, k, c.cfg.Now())
	return *s.next.describe(), waiting, err
}

// Taint marks the old authority: agents replace what it signed.
func (c *CA) Taint(ctx context.Context, k Kind, id string) (Authority, error) {
	if err := c.begin(ctx); err != nil {
		return Authority{}, err
	}
	defer c.op.Unlock()
	a, err := c.old(k, id)
	if err != nil {
		return Authority{}, err
	}
	return *a.describe(), c.taint(ctx, k, a.id)
}

// old returns the old authority if that is its id.
func (c *CA) old(k Kind, id string) (*authority, error) {
	s := c.slotsOf(k)
	switch {
	case k == X509 && c.cfg.Upstream != nil:
		return nil, fmt.Errorf("%w: the X.509 authorities are those of an upstream authority; taint and revoke that", ErrPrecondition)
	case id == "":
		return nil, fmt.Errorf("%w: no authority ID provided", ErrInvalid)
	case s.current != nil && s.current.id == id:
		return nil, fmt.Errorf("%w: it is the active authority; prepare and activate another first", ErrInvalid)
	case s.former() == nil || s.former().id != id:
		return nil, fmt.Errorf("%w: only this server's old authority can be chosen", ErrInvalid)
	}
	return s.former(), nil
}

func (c *CA) taint(ctx context.Context, k Kind, id string) error {
	_, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, _ error) {
		return txn, b.Taint(&txn, k, id, c.serverID, c.cfg.Now())
	})
	if err != nil {
		return fmt.Errorf("taint %s authority %s: %w", k, id, invalid(err))
	}
	c.cfg.Logger.Warn("tainted an authority", "kind", k, "authority_id", id)
	return nil
}

// Revoke removes a tainted authority from the bundle: nothing that it signed is valid any more. Of
// X.509 it must be the old one; a token's may be any but the active and the prepared one.
func (c *CA) Revoke(ctx context.Context, k Kind, id string) (Authority, error) {
	if err := c.begin(ctx); err != nil {
		return Authority{}, err
	}
	defer c.op.Unlock()
	if k == X509 {
		a, err := c.old(k, id)
		if err != nil {
			return Authority{}, err
		}
		return *a.describe(), c.revoke(ctx, k, a.id, a)
	}
	s := c.slotsOf(k)
	b, _ := c.Bundle()
	e, have := b.Elements()[bundle.Key(k, id)]
	switch {
	case id == "":
		return Authority{}, fmt.Errorf("%w: no authority ID provided", ErrInvalid)
	case s.current != nil && s.current.id == id:
		return Authority{}, fmt.Errorf("%w: it is the active authority; prepare and activate another first", ErrInvalid)
	case s.prepared() != nil && s.next.id == id:
		return Authority{}, fmt.Errorf("%w: it is the prepared authority; prepare another first", ErrInvalid)
	case !have:
		return Authority{}, fmt.Errorf("%w: the trust bundle has no such authority", ErrInvalid)
	}
	gone := s.former()
	if gone != nil && gone.id != id {
		gone = nil
	}
	return Authority{ID: id, ExpiresAt: e.Key.ExpiresAt}, c.revoke(ctx, k, id, gone)
}

// revoke removes the authorities with this id from the bundle, and ours, if that is one of them,
// from the journal.
func (c *CA) revoke(ctx context.Context, k Kind, id string, ours *authority) error {
	change := func(b Bundle, txn *store.Txn) error { return b.Revoke(txn, k, id) }
	var err error
	if ours != nil {
		s := c.slotsOf(k)
		s.next, s.old = nil, false
		err = c.write(ctx, k, s, change)
	} else {
		_, err = c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, err error) { return txn, change(b, &txn) })
	}
	if err != nil {
		return fmt.Errorf("revoke %s authority %s: %w", k, id, invalid(err))
	}
	c.forget(ctx, ours)
	c.cfg.Logger.Warn("revoked an authority", "kind", k, "authority_id", id)
	return nil
}

// TaintUpstream marks the upstream's root by its subject key id in hex. It must be that of our old
// X.509 authority and not of the active one.
func (c *CA) TaintUpstream(ctx context.Context, ski string) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	a, err := c.oldUpstream(ski)
	if err != nil {
		return err
	}
	return c.taint(ctx, X509, a.upstreamID)
}

// RevokeUpstream removes the upstream's tainted root, as TaintUpstream has it.
func (c *CA) RevokeUpstream(ctx context.Context, ski string) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	a, err := c.oldUpstream(ski)
	if err != nil {
		return err
	}
	return c.revoke(ctx, X509, a.upstreamID, a)
}

func (c *CA) oldUpstream(ski string) (*authority, error) {
	s := c.slotsOf(X509)
	switch old := s.former(); {
	case c.cfg.Upstream == nil:
		return nil, fmt.Errorf("%w: there is no upstream authority", ErrPrecondition)
	case ski == "":
		return nil, fmt.Errorf("%w: no subject key ID provided", ErrInvalid)
	case s.current != nil && strings.EqualFold(s.current.upstreamID, ski):
		return nil, fmt.Errorf("%w: the active authority is below this upstream authority; have the upstream use another, then prepare and activate", ErrInvalid)
	case old == nil || !strings.EqualFold(old.upstreamID, ski):
		return nil, fmt.Errorf("%w: it is not the upstream authority of this server's old authority", ErrInvalid)
	default:
		return old, nil
	}
}
