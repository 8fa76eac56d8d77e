// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
	"github.com/assay-id/assay/server/store"
)

// Upstream certifies our X.509 authorities.
type Upstream interface {
	// MintCA returns a CA certificate for the key of the CSR (DER), then those between it and the
	// root, and all roots of the upstream. ttl is a wish.
	MintCA(ctx context.Context, csr []byte, ttl time.Duration) (chain, roots []*x509.Certificate, err error)
	// Publish tells the upstream of a token's authority and returns all of that kind that it knows;
	// errors.ErrUnsupported if it does not care for them.
	Publish(ctx context.Context, k Kind, a KeyAuthority) ([]KeyAuthority, error)
	// Watch sends the upstream's bundle whenever it may have changed, until ctx ends. Nil: it
	// never changes of itself.
	Watch(ctx context.Context) <-chan UpstreamBundle
}

// publishAbove tells the upstream of a key before anybody below sees it.
func (c *CA) publishAbove(ctx context.Context, k Kind, a KeyAuthority) ([]KeyAuthority, error) {
	if c.cfg.Upstream == nil {
		return nil, nil
	}
	all, err := c.cfg.Upstream.Publish(ctx, k, a)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("publish %s authority %s at the upstream authority: %w", k, a.ID, err)
	}
	return all, nil
}

const upstreamTimeout = 2 * time.Minute

// followUpstream brings the upstream's bundle into ours until ctx ends.
func (c *CA) followUpstream(ctx context.Context) {
	updates := c.cfg.Upstream.Watch(ctx)
	if updates == nil {
		return
	}
	var last UpstreamBundle
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case b, ok := <-updates:
			if !ok {
				return
			}
			last = b
		case <-again:
		}
		again = nil
		once, cancel := context.WithTimeout(ctx, upstreamTimeout)
		if err := c.adopt(once, last); err != nil {
			c.cfg.Logger.Error("the upstream authority's bundle can not be taken over; trying again", "error", err)
			again = time.After(rotateEvery)
		}
		cancel()
	}
}

// adopt takes over what the upstream trusts. A root that it tainted is replaced by another above
// us before it is tainted here, and one that then disappeared is revoked.
func (c *CA) adopt(ctx context.Context, up UpstreamBundle) error {
	tainted, present := map[string]bool{}, map[string]bool{}
	_, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, err error) {
		for _, a := range up.X509 {
			id, idErr := mint.SubjectKeyID(a.Cert)
			present[bundle.Key(X509, id)], tainted[id] = true, tainted[id] || a.Tainted
			err = errors.Join(err, idErr)
			b.AddCert(&txn, id, a.Cert)
		}
		return txn, errors.Join(err, addKeys(b, &txn, JWT, up.JWT), addKeys(b, &txn, WIT, up.WIT))
	})
	if err != nil {
		return err
	}
	for id, is := range tainted {
		b, _ := c.Bundle()
		if !is || b.Tainted(X509, id) {
			continue
		}
		if err := c.leave(ctx, id); err != nil {
			return err
		}
		if err := c.taint(ctx, X509, id); err != nil {
			return err
		}
	}
	for k, keys := range map[Kind][]KeyAuthority{JWT: up.JWT, WIT: up.WIT} {
		for _, a := range keys {
			present[bundle.Key(k, a.ID)] = true
			b, _ := c.Bundle()
			if !a.Tainted || b.Tainted(k, a.ID) {
				continue
			}
			if err := c.taint(ctx, k, a.ID); err != nil {
				return err
			}
		}
	}
	return c.dropped(ctx, present)
}

// leave has us certified by another root than that, if we are below it.
func (c *CA) leave(ctx context.Context, root string) error {
	if s := c.slotsOf(X509); s.current == nil || s.current.upstreamID != root {
		return nil
	}
	a, err := c.Prepare(ctx, X509)
	if err != nil {
		return err
	}
	if a.UpstreamID == root {
		return fmt.Errorf("the upstream authority tainted its root %s and still signs below it", root)
	}
	_, err = c.Activate(ctx, X509, a.ID)
	return err
}

// dropped revokes the tainted authorities that the upstream no longer has. Of a kind that it has none
// of it knows nothing.
func (c *CA) dropped(ctx context.Context, present map[string]bool) error {
	var known [bundle.Kinds]bool
	b, _ := c.Bundle()
	for key, e := range b.Elements() {
		known[e.Kind] = known[e.Kind] || present[key]
	}
	for _, e := range b.Elements() {
		if !known[e.Kind] || present[bundle.Key(e.Kind, e.ID)] || !b.Tainted(e.Kind, e.ID) {
			continue
		}
		if err := c.revokeDropped(ctx, e); err != nil && !errors.Is(err, ErrInvalid) {
			return err
		}
	}
	return nil
}

// revokeDropped revokes it, unless what we sign with rests on it.
func (c *CA) revokeDropped(ctx context.Context, e bundle.Element) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	restsOn := func(a *authority) bool {
		return a != nil && (e.Kind == X509 && a.upstreamID == e.ID || e.Kind != X509 && a.id == e.ID)
	}
	s := c.slotsOf(e.Kind)
	if restsOn(s.current) || restsOn(s.prepared()) {
		return nil
	}
	gone := s.former()
	if !restsOn(gone) {
		gone = nil
	}
	return c.revoke(ctx, e.Kind, e.ID, gone)
}
