// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/servers"
)

// Bootstrap gets what authenticates the server while the agent knows nothing yet (agent/bootstrap).
type Bootstrap interface {
	// Fetch returns the bundle; nil trusts whatever answers, once.
	Fetch(ctx context.Context) (*spiffebundle.Bundle, error)
	// Word names what the operator said, "" if that can not be told now: what the agent learnt by another word it
	// does not use any more.
	Word() string
}

// Rebootstrap is what to do when servers show certificates that no authority in the kept bundle signed, and no server
// shows another: never, auto (if the node can attest again), or always (the node must be able to). The agent then has the
// bundle fetched anew after the delay. Who can forge the answer of the configured way, or holds a former authority that a file
// still names, and can keep the agent from the true servers for that long, becomes its server: hence never by default.
// A node that can not attest again would lose its identity; it is left as it is.
type Rebootstrap struct {
	Mode  string
	Delay time.Duration
}

// The modes.
const (
	Never  = "never"
	Auto   = "auto"
	Always = "always"
)

// ErrNoReturn ends Run in the mode Always.
var ErrNoReturn = errors.New("rebootstrap_mode is \"always\", but by this node's way of attestation, or by what the server allows, the node can not attest again: set it to \"auto\" or \"never\"")

// authorities returns the bundle that authenticates the server, got by the configured way if there is none yet. nil trusts
// whatever answers.
func (c *Client) authorities(ctx context.Context) (*spiffebundle.Bundle, error) {
	c.mu.Lock()
	b := c.kept
	if c.node != nil {
		b = c.node.bundle
	}
	c.mu.Unlock()
	if b != nil {
		return b, nil
	}
	return c.fetch(ctx)
}

func (c *Client) fetch(ctx context.Context) (*spiffebundle.Bundle, error) {
	c.tell(c.life.Take(life.Bootstrap), "bootstrap")
	word := c.cfg.Bootstrap.Word()
	b, err := c.cfg.Bootstrap.Fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("what authenticates the server could not be had: %w", err)
	}
	c.mu.Lock()
	c.kept = b
	c.mu.Unlock()
	c.word, c.proved = word, false
	return b, nil
}

// mayRebootstrap reports whether servers have been strange for so long that the bundle is fetched anew.
func (c *Client) mayRebootstrap() bool {
	if m := c.cfg.Rebootstrap.Mode; m != Auto && m != Always || !c.again {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.strange.IsZero() && c.cfg.Now().Sub(c.strange) >= c.cfg.Rebootstrap.Delay
}

// rebootstrap replaces what authenticates the server and attests anew. Until that worked, all stays as it was. Then
// workloads get everything anew: what they have is of authorities that the server does not have.
func (c *Client) rebootstrap(ctx context.Context) error {
	c.cfg.Logger.Warn("the servers are not those that this agent knows; its trust bundle is fetched anew, as rebootstrap_mode allows", "since", c.strange)
	c.mu.Lock()
	before := c.kept
	c.strange = c.cfg.Now() // when this fails, the same delay again
	c.mu.Unlock()
	word, proved := c.word, c.proved
	b, err := c.fetch(ctx)
	var n *node
	if err == nil {
		n, err = c.attest(ctx, b)
	}
	if err != nil {
		c.mu.Lock()
		c.kept = before
		c.mu.Unlock()
		c.word, c.proved = word, proved
		return fmt.Errorf("re-bootstrap: %w", err)
	}
	c.cfg.Logger.Warn("the server was authenticated by the bundle that was fetched anew; workloads get everything anew")
	c.sink.Entries(true, nil, nil, 0)
	c.feedState, c.own, c.revoked = nil, nil, nil
	return c.adopt(n)
}

// met notes whether a server was one that the bundle vouches for.
func (c *Client) met(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.strange = time.Time{}
	case errors.As(err, new(x509.UnknownAuthorityError)) && c.strange.IsZero():
		c.strange = c.cfg.Now()
	}
}

// serverTLS authenticates the server as the trust domain's /spire/server, by the bundle; the DNS name plays no part.
// Without a bundle it trusts whatever answers.
func (c *Client) serverTLS(by *spiffebundle.Bundle) (*tls.Config, error) {
	server, err := spiffeid.FromPath(c.cfg.TrustDomain, "/spire/server")
	if err != nil {
		return nil, fmt.Errorf("server ID: %w", err)
	}
	if by != nil {
		return c.explained(tlsconfig.TLSClientConfig(by, tlsconfig.AuthorizeID(server))), nil
	}
	c.cfg.Logger.Warn("insecure_bootstrap: trusting whatever server answers, this once", "server", c.cfg.Servers)
	return &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return fmt.Errorf("server certificate: %w", err)
		}
		if id, err := x509svid.IDFromCert(leaf); err != nil || id != server {
			return fmt.Errorf("server presents %q, want %q", id, server)
		}
		return nil
	}}, nil
}

// explained makes the refusal of a server's certificate say what to do.
func (c *Client) explained(conf *tls.Config) *tls.Config {
	verify := conf.VerifyPeerCertificate
	conf.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		err := verify(raw, chains)
		c.met(err)
		var invalid x509.CertificateInvalidError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
			return fmt.Errorf("the certificate of the server at %s is not valid now, at %s: correct the clock of this machine or of the server (%w)", c.cfg.Servers, c.cfg.Now().UTC().Format(time.RFC3339), err)
		}
		return fmt.Errorf("the server at %s is not one that this agent's bundle vouches for: correct server_address, or set trust_bundle_path to what `assay bundle show` prints on that server (%w)", c.cfg.Servers, err)
	}
	return conf
}

// dialNode connects with the node's own SVID; its key may live in a TPM.
func (c *Client) dialNode(n *node) (*servers.Conn, error) {
	server, err := spiffeid.FromPath(c.cfg.TrustDomain, "/spire/server")
	if err != nil {
		return nil, fmt.Errorf("server ID: %w", err)
	}
	return c.cfg.Servers.Dial(credentials.NewTLS(c.explained(tlsconfig.MTLSClientConfig(n.svid, n.bundle, tlsconfig.AuthorizeID(server)))))
}
