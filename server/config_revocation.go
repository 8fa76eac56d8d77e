// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
)

// RevocationConfig is the block `revocation`: how SVIDs are taken back before they end.
type RevocationConfig struct {
	// OnSuspend revokes what the workloads of a node have when the node is suspended or banned (default true).
	OnSuspend *bool `hcl:"on_suspend,optional"`
	// CRLTTL is how long a revocation list is valid (default 1h); it is signed anew at half of that.
	CRLTTL string `hcl:"crl_ttl,optional"`
	// CRLEndpoint serves the lists to anyone.
	CRLEndpoint *CRLEndpointConfig `hcl:"crl_endpoint,block"`
}

// CRLEndpointConfig is the block `crl_endpoint`: plain HTTP, since a list is signed (RFC 5280 §8).
type CRLEndpointConfig struct {
	// Address (default 0.0.0.0) and Port to listen on.
	Address string `hcl:"address,optional"`
	Port    int    `hcl:"port"`
	// URL below which relying parties reach it, at any server, for example "http://crl.example.org:8083": X.509-SVIDs
	// name it from then on.
	URL string `hcl:"url"`
}

const minCRLTTL = time.Minute

// readRevocation understands the block, which may be left out.
func (p *prepared) readRevocation() error {
	if p.Revocation == nil {
		p.Revocation = &RevocationConfig{}
	}
	c := p.Revocation
	if c.OnSuspend == nil {
		yes := true
		c.OnSuspend = &yes
	}
	p.crlTTL = time.Hour
	if c.CRLTTL != "" {
		d, err := time.ParseDuration(c.CRLTTL)
		if err != nil || d < minCRLTTL || d > 7*24*time.Hour {
			return fmt.Errorf("revocation: crl_ttl %q: write a time from 1m to 168h, for example \"1h\"", c.CRLTTL)
		}
		p.crlTTL = d
	}
	e := c.CRLEndpoint
	if e == nil {
		return nil
	}
	if e.Address == "" {
		e.Address = "0.0.0.0"
	}
	if e.Port < 1 || e.Port > 65535 {
		return fmt.Errorf("revocation: crl_endpoint: port %d: write a port from 1 to 65535", e.Port)
	}
	u, err := url.Parse(e.URL)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("revocation: crl_endpoint: url %q: write one that begins with http:// and has no query (RFC 5280 §4.2.1.13)", e.URL)
	}
	p.crlURL = strings.TrimSuffix(e.URL, "/")
	return nil
}

// openRevocations opens what is revoked; nothing may be signed before.
func (s *Server) openRevocations(ctx context.Context) (err error) {
	s.revocations, err = revocation.Open(ctx, revocation.Config{
		Dir: filepath.Join(s.conf.DataDir, "signed"), ServerID: s.ca.ServerID(), Store: s.store, Authorities: s.ca,
		Life: s.conf.caTTL, ListTTL: s.conf.crlTTL, Always: s.conf.crlURL != "", Told: s.streams.RevocationChanged, Logger: s.log,
	})
	return err
}

// followAuthorities has lists made for new authorities before they sign.
func (s *Server) followAuthorities(ctx context.Context) {
	for {
		_, changed := s.ca.Bundle()
		s.revocations.Refresh()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// revokeRefused has what nodes have revoked that do not count any more, which may have happened while this server was away.
func (s *Server) revokeRefused() error {
	all, _, err := s.nodes.List(nodes.Filter{}, 0, "")
	if err != nil {
		return fmt.Errorf("look for nodes that are suspended or banned: %w", err)
	}
	for _, n := range all {
		s.revokeOf(n.ID)
	}
	return nil
}

// revokeOf has what a node has revoked if it does not count any more.
func (s *Server) revokeOf(id spiffeid.ID) {
	n := s.nodes.Get(id)
	if n == nil || !*s.conf.Revocation.OnSuspend || n.State != nodes.StateSuspended && n.State != nodes.StateBanned {
		return
	}
	why := "the node is " + string(n.State)
	if n.Reason != "" {
		why += ": " + n.Reason
	}
	s.revocations.NodeRefused(id.String(), n.Since, why)
}
