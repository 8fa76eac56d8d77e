// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// storedBundle is a Bundle in the store. It is not the SPIFFE document, which has no expiry times.
type storedBundle struct {
	X509        [][]byte          `json:"x509,omitempty"` // DER
	JWT         []storedAuthority `json:"jwt,omitempty"`
	WIT         []storedAuthority `json:"wit,omitempty"`
	RefreshHint int64             `json:"refresh_hint,omitempty"` // seconds
	Sequence    uint64            `json:"sequence"`
}

type storedAuthority struct {
	ID        string    `json:"id"`
	PublicKey []byte    `json:"public_key"` // PKIX
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

func encodeBundle(b *Bundle) ([]byte, error) {
	s := storedBundle{RefreshHint: int64(b.RefreshHint / time.Second), Sequence: b.Sequence}
	for _, cert := range b.X509 {
		s.X509 = append(s.X509, cert.Raw)
	}
	var err error
	if s.JWT, err = encodeAuthorities(b.JWT); err != nil {
		return nil, err
	}
	if s.WIT, err = encodeAuthorities(b.WIT); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

func encodeAuthorities(as []Authority) ([]storedAuthority, error) {
	var out []storedAuthority
	for _, a := range as {
		der, err := x509.MarshalPKIXPublicKey(a.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("encode authority %q: %w", a.ID, err)
		}
		out = append(out, storedAuthority{a.ID, der, a.ExpiresAt.UTC()})
	}
	return out, nil
}

func decodeBundle(td spiffeid.TrustDomain, value []byte) (*Bundle, error) {
	var s storedBundle
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, err
	}
	b := &Bundle{TrustDomain: td, RefreshHint: time.Duration(s.RefreshHint) * time.Second, Sequence: s.Sequence}
	for _, der := range s.X509 {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		b.X509 = append(b.X509, cert)
	}
	var err error
	if b.JWT, err = decodeAuthorities(s.JWT); err != nil {
		return nil, err
	}
	if b.WIT, err = decodeAuthorities(s.WIT); err != nil {
		return nil, err
	}
	return b, nil
}

func decodeAuthorities(stored []storedAuthority) ([]Authority, error) {
	var out []Authority
	for _, s := range stored {
		key, err := x509.ParsePKIXPublicKey(s.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("authority %q: %w", s.ID, err)
		}
		out = append(out, Authority{s.ID, key, s.ExpiresAt})
	}
	return out, nil
}

// storedRelationship is a Relationship in the store.
type storedRelationship struct {
	URL        string      `json:"url"`
	Profile    Profile     `json:"profile"`
	EndpointID spiffeid.ID `json:"endpoint_id,omitzero"`
}

func encodeRelationship(r Relationship) ([]byte, error) {
	return json.Marshal(storedRelationship{r.URL, r.Profile, r.EndpointID})
}

func decodeRelationship(td spiffeid.TrustDomain, value []byte) (Relationship, error) {
	var s storedRelationship
	err := json.Unmarshal(value, &s)
	return Relationship{td, s.URL, s.Profile, s.EndpointID}, err
}

// poll says that a server set out to fetch a bundle.
type poll struct {
	At time.Time `json:"at"`
}
