// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"

	"github.com/go-jose/go-jose/v4"

	"github.com/assay-id/assay/agent/keys"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Signer has SVIDs signed by the server (agent/upstream). An error with a method
// Refused() bool that says true is a verdict of the server; any other is a fault.
type Signer interface {
	// SignX509SVID returns the chain, leaf first, and whether it is for this process only.
	SignX509SVID(ctx context.Context, entry *selectors.Entry, csr []byte, facts *selectors.Facts) (chain []*x509.Certificate, perProcess bool, err error)
	SignJWTSVID(ctx context.Context, entry *selectors.Entry, audience []string, facts *selectors.Facts) (trust.Token, error)
	// SignWITSVID takes the workload's public key, PKIX DER, and the JWS algorithm that it signs with.
	SignWITSVID(ctx context.Context, entry *selectors.Entry, publicKey []byte, algorithm string, facts *selectors.Facts) (trust.Token, error)
}

// refused reports whether a Signer's error is a verdict of the server and not a fault.
func refused(err error) bool {
	var r interface{ Refused() bool }
	return errors.As(err, &r) && r.Refused()
}

// request is one SVID that is asked for.
type request struct {
	kind     Kind
	entry    *selectors.Entry
	caller   Caller
	audience []string
	renews   bool // a good one is there; it counts in Manager.renewing
}

func (m *Manager) sign(ctx context.Context, r *request) (*SVID, error) {
	e, facts := r.entry, r.caller.Facts()
	svid := &SVID{Kind: r.kind, EntryID: e.ID, EntryRevision: e.Revision, ID: e.SPIFFEID, Audience: r.audience}
	switch r.kind {
	case JWT:
		return svid.signed(m.signer.SignJWTSVID(ctx, e, r.audience, facts))
	case WIT:
		key, public, err := m.makeWITKey()
		if err != nil {
			return nil, err
		}
		svid.Key = key
		return svid.signed(m.signer.SignWITSVID(ctx, e, public, string(jose.ES256), facts))
	}
	key, csr, err := m.makeX509Key(e)
	if err != nil {
		return nil, err
	}
	chain, perProcess, err := m.signer.SignX509SVID(ctx, e, csr, facts)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	svid.perProcess = perProcess || e.Options.PerProcess
	svid.Key, svid.Serial, svid.NotBefore, svid.NotAfter = key, leaf.SerialNumber.String(), leaf.NotBefore, leaf.NotAfter
	for _, c := range chain {
		svid.Chain = append(svid.Chain, c.Raw...)
	}
	return svid, nil
}

func (s *SVID) signed(t trust.Token, err error) (*SVID, error) {
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(t.Text))
	s.perProcess = t.PerProcess
	s.Token, s.keyID, s.NotBefore, s.NotAfter, s.Serial = t.Text, t.KeyID, t.IssuedAt, t.ExpiresAt, hex.EncodeToString(sum[:])
	return s, nil
}

// makeX509Key returns a new key of the entry's type as PKCS#8 and a CSR for the entry signed by it.
func (m *Manager) makeX509Key(e *selectors.Entry) (pkcs8, csr []byte, err error) {
	kind := e.Options.KeyType
	if kind == selectors.KeyDefault {
		kind = m.keyType
	}
	key, err := m.keys.Take(kind)
	if err != nil {
		return nil, nil, err
	}
	if pkcs8, err = keys.PKCS8(key); err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
		URIs:    []*url.URL{e.SPIFFEID.URL()},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make CSR: %w", err)
	}
	return pkcs8, csr, nil
}

// makeWITKey returns a new P-256 key as a JWK (SPIFFE Workload API, section 7.1) and its public part, PKIX DER.
func (m *Manager) makeWITKey() (jwk, public []byte, err error) {
	key, err := m.keys.Take(selectors.KeyECP256)
	if err != nil {
		return nil, nil, err
	}
	if public, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, nil, fmt.Errorf("encode WIT key: %w", err)
	}
	if jwk, err = (jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256)}).MarshalJSON(); err != nil {
		return nil, nil, fmt.Errorf("encode WIT key: %w", err)
	}
	return keys.Secret(jwk), public, nil
}
