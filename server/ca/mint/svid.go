// SPDX-License-Identifier: Apache-2.0

package mint

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Request for an X.509-SVID.
type Request struct {
	ID        spiffeid.ID
	PublicKey crypto.PublicKey
	// TTL from now; zero is the default. It ends at the authority's end at the latest.
	TTL time.Duration
	// DNSNames in order; the first becomes the common name.
	DNSNames []string
	// Subject instead of the configured one, if it is not empty.
	Subject pkix.Name
}

const svidUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement

// SVID signs an X.509-SVID and returns its chain.
func (a *Authority) SVID(s *Shape, req Request, now time.Time) ([]*x509.Certificate, error) {
	if err := s.member(req.ID); err != nil {
		return nil, err
	}
	template, err := a.template(s, req, now)
	if err != nil {
		return nil, err
	}
	cert, err := create(template, a.Chain[0], req.PublicKey, a.Key)
	if err != nil {
		return nil, fmt.Errorf("the SVID of %s: %w", req.ID, err)
	}
	if err := a.validate(cert, req.ID, now); err != nil {
		return nil, fmt.Errorf("the signed SVID of %s is not valid: %w", req.ID, err)
	}
	return a.below(cert), nil
}

// member refuses what names nobody in the trust domain (SPIFFE X.509-SVID §3.1).
func (s *Shape) member(id spiffeid.ID) error {
	if id.TrustDomain() != s.TrustDomain || id.Path() == "" {
		return fmt.Errorf("%w: %q is not an identity of trust domain %q", ErrInvalid, id, s.TrustDomain.Name())
	}
	return nil
}

// template is the shape of SPIRE's SVIDs (SPIFFE X.509-SVID §4).
func (a *Authority) template(s *Shape, req Request, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(req.PublicKey)
	if err != nil {
		return nil, err
	}
	subject := s.SVIDSubject
	if len(req.Subject.ToRDNSequence()) > 0 {
		subject = req.Subject
	}
	if len(req.DNSNames) > 0 {
		subject.CommonName = req.DNSNames[0]
	}
	var lists []string
	if s.CRLs != "" {
		lists = []string{s.CRLs + "/" + hex.EncodeToString(a.Chain[0].SubjectKeyId) + ".crl"}
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-backdate), NotAfter: a.until(now.Add(req.TTL)),
		URIs:                  []*url.URL{req.ID.URL()},
		DNSNames:              req.DNSNames,
		BasicConstraintsValid: true,
		KeyUsage:              svidUsage,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		SubjectKeyId:          ski,
		AuthorityKeyId:        a.Chain[0].SubjectKeyId,
		CRLDistributionPoints: lists,
	}, nil
}

// validate judges the certificate as a peer will (SPIFFE X.509-SVID §5). That the signature is good
// x509.CreateCertificate has checked.
func (a *Authority) validate(cert *x509.Certificate, want spiffeid.ID, now time.Time) error {
	issuer := a.Chain[0]
	switch {
	case len(cert.URIs) != 1 || cert.URIs[0].String() != want.String():
		return fmt.Errorf("it names %v", cert.URIs)
	case !cert.BasicConstraintsValid || cert.IsCA:
		return errors.New("its basic constraints are wrong")
	case cert.KeyUsage != svidUsage || len(cert.ExtKeyUsage) != 2:
		return errors.New("its key usage is wrong")
	case string(cert.AuthorityKeyId) != string(issuer.SubjectKeyId) || string(cert.RawIssuer) != string(issuer.RawSubject):
		return errors.New("its issuer is another")
	case !now.Before(cert.NotAfter) || now.Before(cert.NotBefore) || cert.NotAfter.After(a.NotAfter):
		return errors.New("it is not valid now, or longer than its issuer")
	case len(cert.UnhandledCriticalExtensions) > 0:
		return errors.New("it has critical extensions that nobody knows")
	}
	return nil
}
