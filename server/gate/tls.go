// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// tlsConfig asks for a client certificate but does not require one: an agent that attests has
// none. One that is presented must be an SVID of our trust domain, or of one that the configuration
// names, under the present bundle of that trust domain, or the handshake fails. Tickets are off, so that every connection is judged anew.
func (g *Gate) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequestClientCert, // and no list of CA names
		SessionTicketsDisabled: true,
		// Small records are for web pages that come bit by bit; each costs a system call.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return g.cfg.ServerSVID()
		},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return nil
			}
			return g.verifyClient(raw)
		},
	}
}

func (g *Gate) verifyClient(raw [][]byte) error {
	id, _, err := x509svid.ParseAndVerify(raw, bundleSource{g}, x509svid.WithTime(g.cfg.Now()))
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	if id.TrustDomain() != g.cfg.TrustDomain && !g.named(id) {
		return fmt.Errorf("client certificate: %s is not of trust domain %s, and the configuration does not name it", id, g.cfg.TrustDomain.Name())
	}
	return nil
}

// bundleSource is the present bundle for go-spiffe.
type bundleSource struct{ *Gate }

func (b bundleSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.FromX509Authorities(td, b.cfg.Authorities(td)), nil
}
