// SPDX-License-Identifier: Apache-2.0

// Package trust holds a trust domain's bundle as the agent uses it: in the forms that workloads get,
// made once, and with what an operator declared tainted: authorities that others still believe until
// they are revoked, and by which nothing of ours should be signed any more.
package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Tainted names authorities of a bundle: X.509 ones by certificate, JWT and WIT ones by key id.
type Tainted struct {
	X509     []*x509.Certificate
	JWT, WIT []string
}

// Bundle is one trust domain's bundle. It does not change.
type Bundle struct {
	all     *spiffebundle.Bundle
	jwt     *jwtbundle.Bundle
	tainted Tainted
	revoked *Revoked // nil: there are no lists

	x509DER          []byte
	jwtJWKS, witJWKS []byte
}

// New takes over b, which must not change any more.
func New(b *spiffebundle.Bundle, tainted Tainted) (*Bundle, error) {
	out := &Bundle{all: b, jwt: b.JWTBundle(), tainted: tainted}
	for _, c := range b.X509Authorities() {
		out.x509DER = append(out.x509DER, c.Raw...)
	}
	var err error
	if out.jwtJWKS, err = keySet(b.JWTAuthorities()); err != nil {
		return nil, fmt.Errorf("JWT authorities of %s: %w", b.TrustDomain(), err)
	}
	if out.witJWKS, err = keySet(b.WITAuthorities()); err != nil {
		return nil, fmt.Errorf("WIT authorities of %s: %w", b.TrustDomain(), err)
	}
	return out, nil
}

// keySet is a JWK Set of RFC 7517 without parameters of SPIFFE's, in the order of the key ids: the same
// keys are the same bytes. SPIRE leaves `use` out too: libraries refuse uses that they do not know.
func keySet[K any](keys map[string]K) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{KeyID: id, Key: keys[id]})
	}
	return json.Marshal(set)
}

// TrustDomain returns whose bundle it is.
func (b *Bundle) TrustDomain() spiffeid.TrustDomain { return b.all.TrustDomain() }

// Sequence returns the bundle's sequence number, 0 if it has none.
func (b *Bundle) Sequence() uint64 {
	n, _ := b.all.SequenceNumber()
	return n
}

// X509Bundle returns a copy of the X.509 authorities, to verify by.
func (b *Bundle) X509Bundle() *x509bundle.Bundle { return b.all.X509Bundle() }

// SPIFFE returns a copy of the bundle without the taints.
func (b *Bundle) SPIFFE() *spiffebundle.Bundle { return b.all.Clone() }

// X509 returns the X.509 authorities as concatenated DER.
func (b *Bundle) X509() []byte { return b.x509DER }

// JWKS returns the JWT authorities as a JWK Set.
func (b *Bundle) JWKS() []byte { return b.jwtJWKS }

// WITKeys returns the WIT authorities as a JWK Set.
func (b *Bundle) WITKeys() []byte { return b.witJWKS }

// HasWIT reports whether there are WIT authorities.
func (b *Bundle) HasWIT() bool { return len(b.all.WITAuthorities()) > 0 }

// JWT returns the JWT authorities, to validate by.
func (b *Bundle) JWT() *jwtbundle.Bundle { return b.jwt }

// Equal: the same authorities, taints, revocation lists, sequence number and refresh hint.
func (b *Bundle) Equal(o *Bundle) bool {
	return b.all.Equal(o.all) && slices.Equal(b.tainted.JWT, o.tainted.JWT) && slices.Equal(b.tainted.WIT, o.tainted.WIT) &&
		slices.EqualFunc(b.tainted.X509, o.tainted.X509, (*x509.Certificate).Equal) && b.revoked.equal(o.revoked)
}

// TaintsChain reports whether a tainted X.509 authority signed a certificate of the chain, or one of them is revoked.
func (b *Bundle) TaintsChain(chain []*x509.Certificate) bool {
	return b.Revokes(chain) || slices.ContainsFunc(b.tainted.X509, func(a *x509.Certificate) bool {
		return slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return signedBy(c, a) })
	})
}

// Revokes reports whether one of the certificates is on the trust domain's revocation lists.
func (b *Bundle) Revokes(chain []*x509.Certificate) bool {
	return b.revoked != nil && slices.ContainsFunc(chain, b.revoked.has)
}

// signedBy goes by the key identifiers that both have in everything that SPIFFE's issuers make; where
// one lacks them, the signature tells.
func signedBy(c, authority *x509.Certificate) bool {
	if len(c.AuthorityKeyId) > 0 && len(authority.SubjectKeyId) > 0 {
		return bytes.Equal(c.AuthorityKeyId, authority.SubjectKeyId)
	}
	return c.CheckSignatureFrom(authority) == nil
}

// TaintsKey reports whether a tainted JWT or WIT authority has this key id. Ids are unique in the whole
// bundle (WIT-SVID, section 6.1).
func (b *Bundle) TaintsKey(id string) bool {
	return slices.Contains(b.tainted.JWT, id) || slices.Contains(b.tainted.WIT, id)
}

// ByTrustDomain returns a form of each bundle by the SPIFFE ID of its trust domain.
func ByTrustDomain[V any](bundles []*Bundle, form func(*Bundle) V) map[string]V {
	out := make(map[string]V, len(bundles))
	for _, b := range bundles {
		out[b.TrustDomain().IDString()] = form(b)
	}
	return out
}

// Change is what the server says of bundles.
type Change struct {
	// Own is the agent's trust domain's; nil: as before.
	Own *Bundle
	// Foreign are the bundles of other trust domains that are new or changed; with Full, they are all.
	Foreign []*Bundle
	Full    bool
	// Removed are other trust domains whose bundle is to be forgotten.
	Removed []spiffeid.TrustDomain
}
