// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/federation"
)

// allAuthorities is what a nil mask means.
var allAuthorities = &types.BundleMask{X509Authorities: true, JwtAuthorities: true, WitAuthorities: true, RefreshHint: true, SequenceNumber: true}

func bundleMask(m *types.BundleMask) *types.BundleMask {
	if m == nil {
		return allAuthorities
	}
	return m
}

// Bundle returns the masked fields of our own bundle; the trust domain is always there.
func Bundle(td spiffeid.TrustDomain, b ca.Bundle, mask *types.BundleMask) *types.Bundle {
	m := bundleMask(mask)
	p := &types.Bundle{TrustDomain: td.Name()}
	set(m.SequenceNumber, &p.SequenceNumber, b.Sequence)
	if m.X509Authorities {
		for _, a := range b.X509 {
			p.X509Authorities = append(p.X509Authorities, &types.X509Certificate{Asn1: a.Cert.Raw, Tainted: a.Tainted})
		}
	}
	if m.JwtAuthorities {
		p.JwtAuthorities = JWTKeys(b.JWT)
	}
	if m.WitAuthorities {
		p.WitAuthorities = WITKeys(b.WIT)
	}
	return p
}

// JWTKeys returns our JWT authorities.
func JWTKeys(as []ca.KeyAuthority) (out []*types.JWTKey) {
	for _, a := range as {
		out = append(out, &types.JWTKey{PublicKey: pkix(a.PublicKey), KeyId: a.ID, ExpiresAt: unixSeconds(a.ExpiresAt), Tainted: a.Tainted})
	}
	return out
}

// WITKeys returns our WIT authorities.
func WITKeys(as []ca.KeyAuthority) (out []*types.WITKey) {
	for _, a := range as {
		out = append(out, &types.WITKey{PublicKey: pkix(a.PublicKey), KeyId: a.ID, ExpiresAt: unixSeconds(a.ExpiresAt), Tainted: a.Tainted})
	}
	return out
}

// pkix is the form that keys are stored in; no bundle takes a key that has none.
func pkix(key crypto.PublicKey) []byte {
	der, _ := x509.MarshalPKIXPublicKey(key)
	return der
}

// FederatedBundle returns the masked fields of another trust domain's bundle.
func FederatedBundle(b *federation.Bundle, mask *types.BundleMask) *types.Bundle {
	m := bundleMask(mask)
	p := &types.Bundle{TrustDomain: b.TrustDomain.Name()}
	set(m.SequenceNumber, &p.SequenceNumber, b.Sequence)
	set(m.RefreshHint, &p.RefreshHint, int64(b.RefreshHint/time.Second))
	if m.X509Authorities {
		for _, cert := range b.X509 {
			p.X509Authorities = append(p.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
		}
	}
	if m.JwtAuthorities {
		for _, a := range b.JWT {
			p.JwtAuthorities = append(p.JwtAuthorities, &types.JWTKey{PublicKey: pkix(a.PublicKey), KeyId: a.ID, ExpiresAt: unixSeconds(a.ExpiresAt)})
		}
	}
	if m.WitAuthorities {
		for _, a := range b.WIT {
			p.WitAuthorities = append(p.WitAuthorities, &types.WITKey{PublicKey: pkix(a.PublicKey), KeyId: a.ID, ExpiresAt: unixSeconds(a.ExpiresAt)})
		}
	}
	return p
}

// ReadTrustDomain reads a name, or an ID in it (SPIRE's tools send either).
func ReadTrustDomain(text string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(text)
	if err != nil {
		return td, status.Errorf(codes.InvalidArgument, "trust domain argument is not valid: %v", err)
	}
	if n := len(td.Name()); n > maxTrustDomain {
		return td, status.Errorf(codes.InvalidArgument, "trust domain argument is not valid: its name has %d bytes; the limit is %d", n, maxTrustDomain)
	}
	return td, nil
}

const maxTrustDomain = 255 // bytes (SPIFFE-ID §2.3)

const maxHint = 10 * 365 * 24 * 3600 // seconds

// SetBundle writes the masked fields of the message into b, all without a mask. Taints are not a caller's to set.
func SetBundle(b *federation.Bundle, p *types.Bundle, mask *types.BundleMask) error {
	m := bundleMask(mask)
	if m.X509Authorities {
		certs, err := ReadX509Authorities(p.X509Authorities)
		if err != nil {
			return failed("bundle", err)
		}
		b.X509 = certs
	}
	if m.JwtAuthorities {
		keys, err := federated(ReadJWTKeys(p.JwtAuthorities))
		if err != nil {
			return failed("bundle", err)
		}
		b.JWT = keys
	}
	if m.WitAuthorities {
		keys, err := federated(ReadWITKeys(p.WitAuthorities))
		if err != nil {
			return failed("bundle", err)
		}
		b.WIT = keys
	}
	if p.RefreshHint < 0 || p.RefreshHint > maxHint {
		return failed("bundle", fmt.Errorf("refresh hint %d: write seconds, at most %d", p.RefreshHint, maxHint))
	}
	set(m.SequenceNumber, &b.Sequence, p.SequenceNumber)
	set(m.RefreshHint, &b.RefreshHint, time.Duration(p.RefreshHint)*time.Second)
	return nil
}

// failed is SPIRE's way to refuse a message.
func failed(what string, err error) error {
	return status.Errorf(codes.InvalidArgument, "failed to convert %s: %s", what, status.Convert(err).Message())
}

func federated(as []ca.KeyAuthority, err error) (out []federation.Authority, _ error) {
	for _, a := range as {
		out = append(out, federation.Authority{ID: a.ID, PublicKey: a.PublicKey, ExpiresAt: a.ExpiresAt})
	}
	return out, err
}

// ReadX509Authorities reads certificates; one message may hold several, one after the other.
func ReadX509Authorities(ps []*types.X509Certificate) (out []*x509.Certificate, _ error) {
	for _, p := range ps {
		certs, err := x509.ParseCertificates(p.GetAsn1())
		if err == nil && len(certs) == 0 {
			err = fmt.Errorf("it is empty")
		}
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "unable to parse X.509 authority: %v", err)
		}
		out = append(out, certs...)
	}
	return out, nil
}

// ReadJWTKeys reads JWT authorities.
func ReadJWTKeys(ps []*types.JWTKey) ([]ca.KeyAuthority, error) { return readKeys("JWT", ps) }

// ReadWITKeys reads WIT authorities.
func ReadWITKeys(ps []*types.WITKey) ([]ca.KeyAuthority, error) { return readKeys("WIT", ps) }

type keyMessage interface {
	GetPublicKey() []byte
	GetKeyId() string
	GetExpiresAt() int64
}

func readKeys[T keyMessage](kind string, ps []T) (out []ca.KeyAuthority, _ error) {
	for _, p := range ps {
		key, err := x509.ParsePKIXPublicKey(p.GetPublicKey())
		if err == nil && p.GetKeyId() == "" {
			err = fmt.Errorf("missing key ID")
		}
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid %s authority %q: %v", kind, p.GetKeyId(), err)
		}
		out = append(out, ca.KeyAuthority{ID: p.GetKeyId(), PublicKey: key, ExpiresAt: unixTime(p.GetExpiresAt())})
	}
	return out, nil
}

// allOfRelationship is what a nil mask means.
var allOfRelationship = &types.FederationRelationshipMask{BundleEndpointUrl: true, BundleEndpointProfile: true, TrustDomainBundle: true}

func relationshipMask(m *types.FederationRelationshipMask) *types.FederationRelationshipMask {
	if m == nil {
		return allOfRelationship
	}
	return m
}

// Relationship returns the masked fields; b is the trust domain's bundle, or nil. The profile https_web is an
// empty message that is there: SPIRE's controller refuses a list without it.
func Relationship(r federation.Relationship, b *federation.Bundle, mask *types.FederationRelationshipMask) *types.FederationRelationship {
	m := relationshipMask(mask)
	p := &types.FederationRelationship{TrustDomain: r.TrustDomain.Name()}
	set(m.BundleEndpointUrl, &p.BundleEndpointUrl, r.URL)
	switch {
	case !m.BundleEndpointProfile:
	case r.Profile == federation.SPIFFE:
		p.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: r.EndpointID.String()}}
	default:
		p.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
	}
	if m.TrustDomainBundle && b != nil {
		p.TrustDomainBundle = FederatedBundle(b, nil)
	}
	return p
}

// SetRelationship writes the masked fields of the message into r, all without a mask.
func SetRelationship(r *federation.Relationship, p *types.FederationRelationship, mask *types.FederationRelationshipMask) error {
	m := relationshipMask(mask)
	set(m.BundleEndpointUrl, &r.URL, p.BundleEndpointUrl)
	if !m.BundleEndpointProfile {
		return nil
	}
	r.EndpointID = spiffeid.ID{}
	switch profile := p.BundleEndpointProfile.(type) {
	case *types.FederationRelationship_HttpsWeb:
		r.Profile = federation.Web
	case *types.FederationRelationship_HttpsSpiffe:
		id, err := spiffeid.FromString(profile.HttpsSpiffe.GetEndpointSpiffeId())
		if err != nil {
			return failed("federation relationship", fmt.Errorf("could not parse endpoint SPIFFE ID: %w", err))
		}
		r.Profile, r.EndpointID = federation.SPIFFE, id
	default:
		return failed("federation relationship", fmt.Errorf("missing bundle endpoint profile"))
	}
	return nil
}

// ReadFirstBundle reads the bundle that a relationship comes with; nil if it has none, or the mask none.
func ReadFirstBundle(p *types.FederationRelationship, mask *types.FederationRelationshipMask) (*federation.Bundle, error) {
	if p.TrustDomainBundle == nil || !relationshipMask(mask).TrustDomainBundle {
		return nil, nil
	}
	td, err := ReadTrustDomain(p.TrustDomainBundle.TrustDomain)
	if err != nil {
		return nil, err
	}
	b := &federation.Bundle{TrustDomain: td}
	return b, SetBundle(b, p.TrustDomainBundle, nil)
}
