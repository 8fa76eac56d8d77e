// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
	"github.com/assay-id/assay/server/keys"
)

// authority is what may sign, with its key. It does not change once it is in a slot.
type authority struct {
	kind    Kind
	id      string
	keyName string
	key     crypto.Signer // nil only of an old one whose key is gone
	public  crypto.PublicKey
	// chain of an X.509 authority: its certificate, then those between it and the root.
	chain []*x509.Certificate
	// anchor is the key in the store of what must be in the bundle: the root, or the public key.
	anchor string
	// upstreamID is the root's subject key id in hex, if it is an upstream's.
	upstreamID          string
	notBefore, notAfter time.Time
	// published is when, and sequence in which bundle.
	published time.Time
	sequence  uint64

	certs  *mint.Authority // of X509
	tokens *mint.Tokens    // of the others
}

// slots are this server's authorities of one kind; next is a prepared one, or an old one.
type slots struct {
	current, next *authority
	old           bool
}

func (s slots) prepared() *authority {
	if s.old {
		return nil
	}
	return s.next
}

func (s slots) former() *authority {
	if s.old {
		return s.next
	}
	return nil
}

// spare is a key that was made and that nobody knows of yet.
type spare struct {
	name string
	key  crypto.Signer
}

func (a *authority) life() time.Duration              { return a.notAfter.Sub(a.notBefore) }
func (a *authority) left(now time.Time) time.Duration { return a.notAfter.Sub(now) }

// validAt is false before its time, too, if it is a certificate: then the clock was set back.
func (a *authority) validAt(now time.Time) bool {
	return now.Before(a.notAfter) && (a.kind != X509 || !now.Before(a.notBefore))
}

func (a *authority) describe() *Authority {
	if a == nil {
		return nil
	}
	return &Authority{a.id, a.upstreamID, a.notAfter}
}

func (a *authority) keyAuthority() KeyAuthority {
	return KeyAuthority{ID: a.id, PublicKey: a.public, ExpiresAt: a.notAfter}
}

// open makes it sign with its key.
func (a *authority) open(key crypto.Signer) (err error) {
	a.key = key
	switch a.kind {
	case X509:
		a.certs = &mint.Authority{Key: key, Chain: a.chain, Root: a.upstreamID == "", NotAfter: a.notAfter}
	case JWT:
		a.tokens, err = mint.NewTokens(mint.TypeJWT, a.id, key, a.notAfter)
	case WIT:
		a.tokens, err = mint.NewTokens(mint.TypeWIT, a.id, key, a.notAfter)
	}
	return err
}

// newKey makes a key, or returns the one that an attempt before left over: a store that is away
// for long must not fill the key manager.
func (c *CA) newKey(ctx context.Context, k Kind) (*spare, error) {
	if c.spare[k] == nil {
		name := k.String() + "-" + uuid.NewString()
		key, err := c.cfg.Keys.Generate(ctx, name, [bundle.Kinds]keys.Type{c.cfg.X509KeyType, c.cfg.JWTKeyType, c.cfg.WITKeyType}[k])
		if err != nil {
			return nil, err
		}
		c.spare[k] = &spare{name, key}
	}
	return c.spare[k], nil
}

// newAuthority makes an authority that nobody knows yet, and, of an X.509 one, the roots to publish.
func (c *CA) newAuthority(ctx context.Context, k Kind, now time.Time) (*authority, []*x509.Certificate, error) {
	made, err := c.newKey(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	a := &authority{kind: k, keyName: made.name, public: made.key.Public(), published: now}
	var roots []*x509.Certificate
	if k == X509 {
		roots, err = c.certify(ctx, a, made.key, now)
	} else {
		a.id = mint.NewKeyID()
		a.anchor = bundle.Key(k, a.id)
		a.notBefore, a.notAfter = now, now.Add(c.cfg.TTL).Truncate(time.Second)
	}
	if err != nil {
		return nil, nil, err
	}
	return a, roots, a.open(made.key)
}

// certify fills in what is certified about an X.509 authority and returns the roots.
func (c *CA) certify(ctx context.Context, a *authority, key crypto.Signer, now time.Time) (roots []*x509.Certificate, err error) {
	if c.cfg.Upstream == nil {
		root, err := c.shape.SelfSign(key, now, c.cfg.TTL)
		if err != nil {
			return nil, err
		}
		a.chain, roots = []*x509.Certificate{root}, []*x509.Certificate{root}
	} else {
		csr, err := c.shape.CSR(key)
		if err != nil {
			return nil, err
		}
		if a.chain, roots, err = c.cfg.Upstream.MintCA(ctx, csr, c.cfg.TTL); err != nil {
			return nil, fmt.Errorf("have an X.509 authority certified by the upstream authority: %w", err)
		}
	}
	trial := mint.Authority{Key: key, Chain: a.chain, Root: c.cfg.Upstream == nil, NotAfter: now.Add(c.cfg.TTL)}
	root, err := trial.Check(&c.shape, roots, now)
	if err != nil {
		return nil, fmt.Errorf("the new X.509 authority is not valid: %w", err)
	}
	rootID, err := mint.SubjectKeyID(root)
	if err != nil {
		return nil, err
	}
	own := a.chain[0]
	a.id, a.anchor = hex.EncodeToString(own.SubjectKeyId), bundle.Key(X509, rootID)
	if c.cfg.Upstream != nil {
		a.upstreamID = rootID
	}
	a.notBefore, a.notAfter = own.NotBefore, own.NotAfter
	for _, above := range slices.Concat(a.chain[1:], []*x509.Certificate{root}) {
		if above.NotAfter.Before(a.notAfter) {
			a.notAfter = above.NotAfter
		}
	}
	return roots, nil
}
