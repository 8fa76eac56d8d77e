// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
)

// CRLSigners are the X.509 authorities of this server whose key it has, by id, and when they end: the active one, and the
// prepared or the old one.
func (c *CA) CRLSigners() map[string]time.Time {
	out := map[string]time.Time{}
	for id, a := range c.crlSigners() {
		out[id] = a.notAfter
	}
	return out
}

func (c *CA) crlSigners() map[string]*authority {
	out := map[string]*authority{}
	s := c.slotsOf(X509)
	for _, a := range []*authority{s.current, s.next} {
		if a != nil && a.key != nil && c.cfg.Now().Before(a.notAfter) {
			out[a.id] = a
		}
	}
	return out
}

// SignCRL signs a list of what the authority signed. It goes on while the store is away, and with a tainted authority: what
// an SVID's issuer says of it counts until the issuer is out of the bundle.
func (c *CA) SignCRL(id string, list *x509.RevocationList) ([]byte, error) {
	a := c.crlSigners()[id]
	if a == nil {
		return nil, fmt.Errorf("%w: this server does not have the key of X.509 authority %s", ErrInvalid, id)
	}
	der, err := a.certs.CRL(list)
	if err != nil {
		return nil, fmt.Errorf("X.509 authority %s: %w", id, err)
	}
	return der, nil
}

// Servers are those of the trust domain, by id, that have an X.509 authority which has not ended.
func (c *CA) Servers(ctx context.Context) ([]string, error) {
	kvs, _, err := c.cfg.Store.Snapshot(ctx, journalPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the journals of authorities: %w", err)
	}
	var ids []string
	for _, kv := range kvs {
		all, err := readJournal(kv.Value)
		if err != nil {
			return nil, fmt.Errorf("%s in the store is damaged: %w", kv.Key, err)
		}
		s := all[bundle.X509]
		for _, a := range []*authority{s.current, s.next} {
			if a != nil && c.cfg.Now().Before(a.notAfter) {
				ids = append(ids, strings.TrimPrefix(kv.Key, journalPrefix))
				break
			}
		}
	}
	return ids, nil
}
