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

// Append adds authorities to the bundle and returns it. It changes none that is there.
func (c *CA) Append(ctx context.Context, roots []*x509.Certificate, jwt []KeyAuthority) (Bundle, error) {
	if len(roots)+len(jwt) == 0 {
		return Bundle{}, fmt.Errorf("%w: no authorities to append", ErrInvalid)
	}
	_, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, err error) {
		return txn, errors.Join(addCerts(b, &txn, roots), addKeys(b, &txn, JWT, jwt))
	})
	if err != nil {
		return Bundle{}, fmt.Errorf("append to the trust bundle: %w", invalid(err))
	}
	b, _ := c.Bundle()
	return b, nil
}

// PublishJWT adds a nested server's key, at the upstream too, and returns all JWT authorities.
func (c *CA) PublishJWT(ctx context.Context, a KeyAuthority) ([]KeyAuthority, error) {
	above, err := c.publishAbove(ctx, JWT, a)
	if err != nil {
		return nil, err
	}
	b, err := c.Append(ctx, nil, append(above, a))
	return b.JWT, err
}

// PublishWIT adds a nested server's key, at the upstream too, and returns all WIT authorities.
func (c *CA) PublishWIT(ctx context.Context, a KeyAuthority) ([]KeyAuthority, error) {
	above, err := c.publishAbove(ctx, WIT, a)
	if err != nil {
		return nil, err
	}
	_, err = c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, err error) { return txn, addKeys(b, &txn, WIT, append(above, a)) })
	if err != nil {
		return nil, fmt.Errorf("publish a WIT authority: %w", invalid(err))
	}
	b, _ := c.Bundle()
	return b.WIT, nil
}

// prune removes what expired a day ago.
func (c *CA) prune(ctx context.Context, now time.Time) error {
	_, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, _ error) {
		b.Prune(&txn, now)
		return txn, nil
	})
	if err != nil {
		return fmt.Errorf("prune the trust bundle: %w", err)
	}
	return nil
}

func addCerts(b Bundle, txn *store.Txn, certs []*x509.Certificate) error {
	for _, cert := range certs {
		id, err := mint.SubjectKeyID(cert)
		if err != nil {
			return err
		}
		b.AddCert(txn, id, cert)
	}
	return nil
}

func addKeys(b Bundle, txn *store.Txn, k Kind, keys []KeyAuthority) error {
	for _, a := range keys {
		if err := b.AddKey(txn, k, a); err != nil {
			return err
		}
	}
	return nil
}

// invalid says that what the bundle refuses was the caller's mistake.
func invalid(err error) error {
	if errors.Is(err, bundle.ErrRefused) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}
