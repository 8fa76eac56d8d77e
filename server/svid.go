// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/assay-id/assay/server/ca"
)

// ownSVID is the server's certificate for its TCP listener. It gets a new key at half life, and when
// the authority above it is tainted: once that is revoked, nobody could connect.
type ownSVID struct {
	ca *ca.CA

	mu   sync.RWMutex
	cert *tls.Certificate
}

func newOwnSVID(c *ca.CA) (*ownSVID, error) {
	o := &ownSVID{ca: c}
	return o, o.renew()
}

func (o *ownSVID) get() (*tls.Certificate, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.cert == nil {
		return nil, errors.New("the server has no SVID yet")
	}
	return o.cert, nil
}

func (o *ownSVID) renew() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the server's key: %w", err)
	}
	chain, err := o.ca.SignServer(key.Public())
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cert = &tls.Certificate{PrivateKey: key, Leaf: chain[0], Certificate: raw(chain)}
	return nil
}

func raw(chain []*x509.Certificate) [][]byte {
	out := make([][]byte, 0, len(chain))
	for _, cert := range chain {
		out = append(out, cert.Raw)
	}
	return out
}

const renewCheck = 5 * time.Second

// run renews until the context ends.
func (o *ownSVID) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(renewCheck)
	defer tick.Stop()
	_, changed := o.ca.Bundle()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		_, changed = o.ca.Bundle()
		o.mu.RLock()
		leaf := o.cert.Leaf
		o.mu.RUnlock()
		now, half := time.Now(), leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)/2)
		if now.Before(half) && !now.Before(leaf.NotBefore) && o.trusted(leaf) {
			continue
		}
		if err := o.renew(); err != nil {
			log.Error("the server's SVID can not be renewed; trying again", "error", err, "expires_at", leaf.NotAfter)
		}
	}
}

// trusted reports whether the certificate is below an authority of ours that may be relied on.
func (o *ownSVID) trusted(leaf *x509.Certificate) bool {
	state, err := o.ca.State(ca.X509)
	id := hex.EncodeToString(leaf.AuthorityKeyId)
	switch {
	case err != nil || state.Active.ID == id:
		return true // there is none to change to
	case state.Old == nil || state.Old.ID != id:
		return false
	}
	b, _ := o.ca.Bundle()
	now, root := time.Now(), cmp.Or(state.Old.UpstreamID, state.Old.ID)
	valid := slices.ContainsFunc(b.X509, func(a ca.X509Authority) bool {
		return hex.EncodeToString(a.Cert.SubjectKeyId) == root && !now.Before(a.Cert.NotBefore) && now.Before(a.Cert.NotAfter)
	})
	return valid && !b.Tainted(ca.X509, root) // not valid yet, when the clock was set back
}
