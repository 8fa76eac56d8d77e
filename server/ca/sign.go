// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ServerID is the SPIFFE ID of every server of a trust domain.
func ServerID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromPath(td, "/spire/server")
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
	now := c.cfg.Now()
	a, err := c.signer(X509, now)
	if err != nil {
		return nil, err
	}
	return a.certs.SVID(&c.shape, req, now)
}

// DownstreamRequest asks for the CA certificate of a nested server.
type DownstreamRequest struct {
	PublicKey crypto.PublicKey
	// TTL from now; zero is that of our own authorities.
	TTL time.Duration
}

// SignDownstream signs a nested server's CA certificate, for the same trust domain. The chain has
// that certificate first and never the root.
func (c *CA) SignDownstream(req DownstreamRequest) ([]*x509.Certificate, error) {
	if err := c.fresh(); err != nil {
		return nil, err
	}
	now := c.cfg.Now()
	a, err := c.signer(X509, now)
	if err != nil {
		return nil, err
	}
	if req.TTL <= 0 {
		req.TTL = c.cfg.TTL
	}
	return a.certs.Downstream(&c.shape, req.PublicKey, now, req.TTL)
}

// SignJWT signs a JWT-SVID.
func (c *CA) SignJWT(req JWTRequest) (Token, error) {
	if err := c.fresh(); err != nil {
		return Token{}, err
	}
	now := c.cfg.Now()
	a, err := c.signer(JWT, now)
	if err != nil {
		return Token{}, err
	}
	if req.TTL <= 0 {
		req.TTL = c.cfg.JWTTTL
	}
	return a.tokens.JWT(&c.shape, req, c.cfg.JWTIssuer, now)
}

// SignWIT signs a WIT-SVID; by default it lives as long as an X.509-SVID.
func (c *CA) SignWIT(req WITRequest) (Token, error) {
	if err := c.fresh(); err != nil {
		return Token{}, err
	}
	now := c.cfg.Now()
	a, err := c.signer(WIT, now)
	if err != nil {
		return Token{}, err
	}
	if req.TTL <= 0 {
		req.TTL = c.cfg.X509SVIDTTL
	}
	return a.tokens.WIT(&c.shape, req, now)
}

// fresh checks that the replicas that a signature rests on are young enough.
func (c *CA) fresh() error {
	if age := c.cfg.Store.Age(); age > c.cfg.MaxAge {
		return fmt.Errorf("%w: %s, and signing is allowed for %s; repair the store (see server status)", ErrStale, age.Round(time.Second), c.cfg.MaxAge)
	}
	return nil
}

// signer returns the authority of the kind that signs now.
func (c *CA) signer(k Kind, now time.Time) (*authority, error) {
	a := c.signing[k].Load()
	if a == nil || !a.validAt(now) {
		return nil, fmt.Errorf("%w: there is no valid %s authority to sign with; see the log for why the CA can not rotate", ErrNotReady, k)
	}
	return a, nil
}
