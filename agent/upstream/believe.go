// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/agent/trust"
	nodepb "github.com/assay-id/assay/proto/node"
)

// believed is the bundle by which the agent judges what the server signs.
func (c *Client) believed() (*spiffebundle.Bundle, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node == nil {
		return nil, errors.New("the agent has no bundle yet")
	}
	return c.node.bundle, nil
}

// believeNode checks the node's own SVID: any ID of the trust domain, but the server's.
func (c *Client) believeNode(svid *x509svid.SVID, b *spiffebundle.Bundle) error {
	if svid.ID.Path() == "/spire/server" {
		return fmt.Errorf("server sent a node SVID of %q, its own", svid.ID)
	}
	return trust.CheckX509(svid.Certificates, b, svid.ID, svid.PrivateKey.Public(), c.cfg.Now())
}

func (c *Client) believeX509(chain []*x509.Certificate, id spiffeid.ID, csr []byte) error {
	b, err := c.believed()
	if err != nil {
		return err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return fmt.Errorf("read back the CSR: %w", err)
	}
	return trust.CheckX509(chain, b, id, req.PublicKey, c.cfg.Now())
}

func (c *Client) believeJWT(token trust.Token, audience []string) error {
	b, err := c.believed()
	if err != nil {
		return err
	}
	return token.CheckJWT(b, audience, c.cfg.Now())
}

func (c *Client) believeWIT(token trust.Token, publicKey []byte) error {
	b, err := c.believed()
	if err != nil {
		return err
	}
	var public crypto.PublicKey
	if public, err = x509.ParsePKIXPublicKey(publicKey); err != nil {
		return fmt.Errorf("read back the public key: %w", err)
	}
	return token.CheckWIT(b, public, c.cfg.Now())
}

// order is what a feed has said so far: it does not go back. A server whose store was restored, or whose replica is behind, is
// another feed.
type order struct {
	revision int64
	bundle   uint64
}

// next checks a message. A revision of 0 is none: it is about bundles only.
func (o *order) next(msg *nodepb.WatchResponse) error {
	if msg.Revision != 0 {
		if msg.Revision < o.revision {
			return fmt.Errorf("the feed went back from revision %d to %d", o.revision, msg.Revision)
		}
		o.revision = msg.Revision
	}
	if msg.Bundle != nil {
		if n := msg.Bundle.SequenceNumber; n < o.bundle {
			return fmt.Errorf("the feed went back from bundle %d to %d", o.bundle, n)
		}
		o.bundle = msg.Bundle.SequenceNumber
	}
	return nil
}
