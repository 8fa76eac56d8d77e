// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ServerID is the SPIFFE ID of every server of a trust domain.
func ServerID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromPath(td, "/spire/server")
}

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

// SignWorkload signs an SVID for a registration entry or for MintX509SVID. It returns the
// chain, leaf first, without the root.
func (c *CA) SignWorkload(req Request) ([]*x509.Certificate, error) {
	if req.TTL <= 0 {
		req.TTL = c.cfg.X509SVIDTTL
	}
	return c.signFresh(req)
}

// SignAgent signs an SVID for an agent.
func (c *CA) SignAgent(id spiffeid.ID, key crypto.PublicKey) ([]*x509.Certificate, error) {
	return c.signFresh(Request{ID: id, PublicKey: key, TTL: c.cfg.AgentTTL})
}

// SignServer signs this server's own SVID. It goes on while the store is away.
func (c *CA) SignServer(key crypto.PublicKey) ([]*x509.Certificate, error) {
	return c.sign(Request{ID: ServerID(c.cfg.TrustDomain), PublicKey: key, TTL: c.cfg.X509SVIDTTL})
}

func (c *CA) signFresh(req Request) ([]*x509.Certificate, error) {
	if err := c.fresh(); err != nil {
		return nil, err
	}
	return c.sign(req)
}

func (c *CA) sign(req Request) ([]*x509.Certificate, error) {
	if req.ID.TrustDomain() != c.cfg.TrustDomain || req.ID.Path() == "" {
		return nil, fmt.Errorf("%q is not an identity of trust domain %q", req.ID, c.cfg.TrustDomain.Name())
	}
	now, a := c.cfg.Now(), c.current().Current
	if a == nil || !now.Before(a.cert.NotAfter) {
		return nil, errors.New("there is no valid authority to sign with; see the log for why the CA can not rotate")
	}
	template, err := c.template(req, now, a)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the SVID of %s: %w", req.ID, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the SVID of %s back: %w", req.ID, err)
	}
	if err := validate(cert, req.ID, a, now); err != nil {
		return nil, fmt.Errorf("the signed SVID of %s is not valid: %w", req.ID, err)
	}
	return []*x509.Certificate{cert}, nil
}

// template is the shape of SPIRE's SVIDs (SPIFFE X.509-SVID §4).
func (c *CA) template(req Request, now time.Time, a *authority) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(req.PublicKey)
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(req.TTL)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	subject := c.cfg.SVIDSubject
	if len(req.Subject.ToRDNSequence()) > 0 {
		subject = req.Subject
	}
	if len(req.DNSNames) > 0 {
		subject.CommonName = req.DNSNames[0]
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-backdate), NotAfter: notAfter,
		URIs:                  []*url.URL{req.ID.URL()},
		DNSNames:              req.DNSNames,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		SubjectKeyId:          ski,
		AuthorityKeyId:        a.cert.SubjectKeyId,
	}, nil
}

// validate judges the certificate as a peer will.
func validate(cert *x509.Certificate, want spiffeid.ID, a *authority, now time.Time) error {
	roots := x509bundle.FromX509Authorities(want.TrustDomain(), []*x509.Certificate{a.cert})
	got, _, err := x509svid.Verify([]*x509.Certificate{cert}, roots, x509svid.WithTime(now))
	switch {
	case err != nil:
		return err
	case got != want:
		return fmt.Errorf("it names %s", got)
	case !cert.BasicConstraintsValid || cert.IsCA:
		return errors.New("its basic constraints are wrong")
	}
	return nil
}
