// SPDX-License-Identifier: Apache-2.0

// Package mint gives certificates and tokens their shape and signs them with a key that it is given.
// It keeps nothing; package ca decides which authority may sign.
package mint

import (
	"crypto"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 5280 §4.2.1.2 method 1 names keys by it; nothing is secured by it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrInvalid: the caller's argument is wrong.
var ErrInvalid = errors.New("invalid argument")

// Shape is what all certificates of a trust domain have in common.
type Shape struct {
	TrustDomain spiffeid.TrustDomain
	// Subject of authorities, and of SVIDs.
	Subject, SVIDSubject pkix.Name
	// CRLs is where everybody reads revocation lists, a URL that is followed by "/", the authority's subject key id in
	// hex and ".crl"; SVIDs name it (RFC 5280 §4.2.1.13). Empty: they do not.
	CRLs string
	// NameConstraints has authorities bound to SPIFFE IDs of the trust domain (SPIFFE X.509-SVID §4.2, RFC 5280 §4.2.1.10; critical): whoever
	// steals a key can then speak for no other one, even to those who mix the bundles of several.
	NameConstraints bool
}

// Authority signs certificates.
type Authority struct {
	Key crypto.Signer
	// Chain is its certificate, then those between it and the root.
	Chain []*x509.Certificate
	// Root: it is one itself, and no chain below it holds it.
	Root bool
	// NotAfter is when it, or the first above it, expires.
	NotAfter time.Time
}

// backdate lets peers with a slow clock accept a new certificate (as SPIRE).
const backdate = 10 * time.Second

// SelfSign makes a root in the shape that SPIRE gives its own (SPIFFE X.509-SVID §3–4; no path
// length, no AKI).
func (s *Shape) SelfSign(key crypto.Signer, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	template, err := s.authority(key.Public(), now, now.Add(ttl))
	if err != nil {
		return nil, err
	}
	template.Subject = s.Subject
	template.Subject.SerialNumber = template.SerialNumber.String()
	return create(template, template, key.Public(), key)
}

// CSR asks an upstream authority for a CA certificate.
func (s *Shape) CSR(key crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: s.Subject, URIs: []*url.URL{s.TrustDomain.ID().URL()}}, key)
	if err != nil {
		return nil, fmt.Errorf("sign a request to the upstream authority: %w", err)
	}
	return csr, nil
}

// authority is the template of a CA certificate.
func (s *Shape) authority(public crypto.PublicKey, now, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(public)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-backdate), NotAfter: notAfter,
		URIs:                  []*url.URL{s.TrustDomain.ID().URL()},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          ski,
	}
	if s.NameConstraints {
		// The one is that host alone, says RFC 5280; to Go it is those below, too, and they are excluded.
		template.PermittedURIDomains, template.ExcludedURIDomains = []string{s.TrustDomain.Name()}, []string{"." + s.TrustDomain.Name()}
		template.PermittedDNSDomainsCritical = true
	}
	return template, nil
}

// Downstream signs the CA certificate of a nested server and returns its chain.
func (a *Authority) Downstream(s *Shape, public crypto.PublicKey, now time.Time, ttl time.Duration) ([]*x509.Certificate, error) {
	subject := a.Chain[0].Subject
	subject.OrganizationalUnit = []string{fmt.Sprintf("DOWNSTREAM-%d", len(a.Chain))}
	return a.CA(s, subject, public, now, ttl)
}

// CA signs a CA certificate for the trust domain and returns its chain.
func (a *Authority) CA(s *Shape, subject pkix.Name, public crypto.PublicKey, now time.Time, ttl time.Duration) ([]*x509.Certificate, error) {
	template, err := s.authority(public, now, a.until(now.Add(ttl)))
	if err != nil {
		return nil, err
	}
	template.Subject = subject
	template.AuthorityKeyId = a.Chain[0].SubjectKeyId
	cert, err := create(template, a.Chain[0], public, a.Key)
	if err != nil {
		return nil, err
	}
	return a.below(cert), nil
}

// below is the chain of a certificate that the authority signed: without the root.
func (a *Authority) below(cert *x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{cert}
	if a.Root {
		return chain
	}
	return append(chain, a.Chain...)
}

// until is when something ends that the authority signs.
func (a *Authority) until(t time.Time) time.Time {
	if t.After(a.NotAfter) {
		return a.NotAfter
	}
	return t
}

// Check judges a new authority before anybody sees it, and signs an SVID on trial, which the name or
// path constraints of an upstream may not allow. It returns the root that the chain ends in.
func (a *Authority) Check(s *Shape, roots []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	if len(a.Chain) == 0 || len(roots) == 0 {
		return nil, errors.New("the upstream authority returned no certificate or no root")
	}
	own, id := a.Chain[0], s.TrustDomain.IDString()
	const usable = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	switch {
	case !SamePublicKey(own.PublicKey, a.Key.Public()):
		return nil, errors.New("its certificate is for another key")
	case !own.IsCA || !own.BasicConstraintsValid || own.KeyUsage&x509.KeyUsageCertSign == 0 || own.KeyUsage&^usable != 0:
		return nil, errors.New("its certificate is not that of a CA, or allows more")
	case len(own.URIs) > 1 || len(own.URIs) == 1 && own.URIs[0].String() != id:
		return nil, fmt.Errorf("its certificate does not name %s", id)
	case len(own.SubjectKeyId) == 0:
		return nil, errors.New("its certificate has no subject key id")
	}
	probe := Request{ID: spiffeid.RequireFromPath(s.TrustDomain, "/probe"), PublicKey: a.Key.Public(), TTL: time.Minute}
	leaf, err := a.SVID(s, probe, now)
	if err != nil {
		return nil, err
	}
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		anchors.AddCert(root)
	}
	for _, cert := range leaf[1:] {
		between.AddCert(cert)
	}
	paths, err := leaf[0].Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	return paths[0][len(paths[0])-1], nil
}

func create(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read a signed certificate back: %w", err)
	}
	return cert, nil
}

// SamePublicKey reports whether two public keys are equal; of unknown types, never.
func SamePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// newSerial returns a random number from 1 to 2^128-1.
func newSerial() (*big.Int, error) {
	most := new(big.Int).Lsh(big.NewInt(1), 128)
	n, err := rand.Int(rand.Reader, most.Sub(most, big.NewInt(1)))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// SubjectKeyID is the certificate's own in hex, or what it ought to be.
func SubjectKeyID(cert *x509.Certificate) (string, error) {
	if len(cert.SubjectKeyId) > 0 {
		return hex.EncodeToString(cert.SubjectKeyId), nil
	}
	id, err := keyID(cert.PublicKey)
	return hex.EncodeToString(id), err
}

// keyID is the SHA-1 of the subjectPublicKey bits (RFC 5280 §4.2.1.2, method 1).
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", ErrInvalid, err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("read a public key: %w", err)
	}
	sum := sha1.Sum(spki.Key.Bytes) //nolint:gosec // see the import
	return sum[:], nil
}
