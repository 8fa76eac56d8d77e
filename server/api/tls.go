// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// tlsConfig asks for a client certificate but does not require one: an agent that attests has
// none. One that is presented must be an SVID of our trust domain under the present bundle, or
// the handshake fails. Tickets are off, so that every connection is judged anew.
func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequestClientCert, // and no list of CA names
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.cfg.ServerSVID()
		},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return nil
			}
			return s.verifyClient(raw)
		},
	}
}

func (s *Server) verifyClient(raw [][]byte) error {
	id, _, err := x509svid.ParseAndVerify(raw, bundleSource{s}, x509svid.WithTime(s.cfg.Now()))
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	if id.TrustDomain() != s.cfg.TrustDomain {
		return fmt.Errorf("client certificate: %s is not of trust domain %s", id, s.cfg.TrustDomain.Name())
	}
	return nil
}

// bundleSource is the present bundle for go-spiffe.
type bundleSource struct{ s *Server }

func (b bundleSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != b.s.cfg.TrustDomain {
		return nil, fmt.Errorf("no bundle for trust domain %s", td.Name())
	}
	bundle, _ := b.s.cfg.Signer.Bundle()
	return x509bundle.FromX509Authorities(td, bundle.X509), nil
}
