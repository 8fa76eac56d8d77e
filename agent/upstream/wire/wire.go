// SPDX-License-Identifier: Apache-2.0

// Package wire reads what the server says in messages into our types, and writes facts into messages.
package wire

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/agent/trust"
	entrypb "github.com/assay-id/assay/proto/entry"
	"github.com/assay-id/assay/selectors"
)

// ID reads a SPIFFE ID.
func ID(pb *types.SPIFFEID) (spiffeid.ID, error) {
	td, err := spiffeid.TrustDomainFromString(pb.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, pb.GetPath())
}

// Chain reads a certificate chain in DER, the leaf first; it is not empty.
func Chain(der [][]byte) ([]*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, errors.New("server sent an empty certificate chain")
	}
	chain := make([]*x509.Certificate, len(der))
	for i, d := range der {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, fmt.Errorf("server sent a malformed certificate: %w", err)
		}
		chain[i] = c
	}
	return chain, nil
}

// SVID reads the node's own, whose key is key.
func SVID(pb *types.X509SVID, key crypto.Signer) (*x509svid.SVID, error) {
	chain, err := Chain(pb.GetCertChain())
	if err != nil {
		return nil, err
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, fmt.Errorf("server sent a node SVID without a SPIFFE ID: %w", err)
	}
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, nil
}

// OwnBundle reads the bundle of the agent's trust domain, without which nothing can be authenticated.
func OwnBundle(td spiffeid.TrustDomain, pb *types.Bundle) (*trust.Bundle, error) {
	if pb.GetTrustDomain() != td.Name() {
		return nil, fmt.Errorf("server sent the bundle of trust domain %q, this agent's is %q", pb.GetTrustDomain(), td.Name())
	}
	if len(pb.X509Authorities) == 0 {
		return nil, errors.New("server sent a bundle without X.509 authorities")
	}
	return Bundle(td, pb)
}

// Bundle reads the bundle of any trust domain.
func Bundle(td spiffeid.TrustDomain, pb *types.Bundle) (*trust.Bundle, error) {
	b, tainted := spiffebundle.New(td), trust.Tainted{}
	for _, a := range pb.GetX509Authorities() {
		c, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			return nil, fmt.Errorf("server sent a malformed X.509 authority: %w", err)
		}
		b.AddX509Authority(c)
		if a.GetTainted() {
			tainted.X509 = append(tainted.X509, c)
		}
	}
	var err error
	if tainted.JWT, err = parseKeys("JWT", pb.GetJwtAuthorities(), b.AddJWTAuthority); err != nil {
		return nil, err
	}
	if tainted.WIT, err = parseKeys("WIT", pb.GetWitAuthorities(), b.AddWITAuthority); err != nil {
		return nil, err
	}
	b.SetSequenceNumber(pb.GetSequenceNumber())
	return trust.New(b, tainted)
}

type keyMessage interface {
	GetPublicKey() []byte
	GetKeyId() string
	GetTainted() bool
}

// parseKeys adds the keys and returns the ids of those that are tainted.
func parseKeys[K keyMessage](kind string, keys []K, add func(string, crypto.PublicKey) error) (tainted []string, _ error) {
	for _, k := range keys {
		key, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
		if err == nil {
			err = add(k.GetKeyId(), key)
		}
		if err != nil {
			return nil, fmt.Errorf("server sent a malformed %s authority %q: %w", kind, k.GetKeyId(), err)
		}
		if k.GetTainted() {
			tainted = append(tainted, k.GetKeyId())
		}
	}
	return tainted, nil
}

// Entry reads an entry. One that can not be understood whole is an error.
func Entry(pb *types.Entry) (*selectors.Entry, error) {
	id, err := ID(pb.GetSpiffeId())
	if err != nil {
		return nil, fmt.Errorf("SPIFFE ID: %w", err)
	}
	parent, err := ID(pb.GetParentId())
	if err != nil {
		return nil, fmt.Errorf("parent ID: %w", err)
	}
	e := &selectors.Entry{
		ID: pb.GetId(), SPIFFEID: id, ParentID: parent, Hint: pb.GetHint(), Admin: pb.GetAdmin(), Downstream: pb.GetDownstream(),
		Revision: pb.GetRevisionNumber(), CreatedAt: time.Unix(pb.GetCreatedAt(), 0),
		FederatesWith: pb.GetFederatesWith(), DNSNames: pb.GetDnsNames(),
		X509SVIDTTL: time.Duration(pb.GetX509SvidTtl()) * time.Second,
		JWTSVIDTTL:  time.Duration(pb.GetJwtSvidTtl()) * time.Second,
	}
	if a := pb.GetAdditionalAttributes(); a != nil {
		e.Attributes = &selectors.EntryAttributes{DisableX509SVIDPrefetch: a.GetDisableX509SvidPrefetch(), JWTSVIDIncludeJTI: a.GetJwtSvidIncludeJti()}
	}
	o, err := entrypb.Get(pb)
	if err != nil {
		return nil, err
	}
	if o != nil {
		e.Options = selectors.EntryOptions{PerProcess: o.PerProcess, Prefetch: o.Prefetch, KeyType: selectors.KeyType(min(uint32(o.KeyType), math.MaxUint8)), Grace: time.Duration(o.Grace) * time.Second}
	}
	if at := pb.GetExpiresAt(); at != 0 {
		e.ExpiresAt = time.Unix(at, 0)
	}
	for _, s := range pb.GetSelectors() {
		sel := selectors.Selector{Type: s.GetType(), Value: s.GetValue()}
		if err := sel.Validate(); err != nil {
			return nil, err
		}
		e.Selectors = append(e.Selectors, sel)
	}
	if e.ID == "" || len(e.Selectors) == 0 {
		return nil, errors.New("entry without an id or without selectors")
	}
	return e, e.Validate()
}
