// SPDX-License-Identifier: Apache-2.0

// Package wire translates: SPIRE's messages and ours into domain types and back (Read… reads a
// message, the others make one), and errors of the packages below into statuses with the codes,
// words and details that SPIRE's agents and tools decide on. It keeps nothing and asks nobody.
package wire

import (
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/nodes"
)

func readSelectors(ps []*types.Selector) []selectors.Selector {
	out := make([]selectors.Selector, 0, len(ps))
	for _, p := range ps {
		out = append(out, selectors.Selector{Type: p.GetType(), Value: p.GetValue()})
	}
	return out
}

func selectorsOf(ss []selectors.Selector) []*types.Selector {
	out := make([]*types.Selector, 0, len(ss))
	for _, s := range ss {
		out = append(out, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return out
}

func unixTime(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}

func unixSeconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// SVID returns the chain as the SVID of id.
func SVID(id spiffeid.ID, chain []*x509.Certificate) *types.X509SVID {
	p := &types.X509SVID{Id: ID(id), ExpiresAt: chain[0].NotAfter.Unix()}
	for _, cert := range chain {
		p.CertChain = append(p.CertChain, cert.Raw)
	}
	return p
}

// JWTSVID returns the token as the SVID of id; nil for no token.
func JWTSVID(id spiffeid.ID, t ca.Token) *types.JWTSVID {
	if t.Token == "" {
		return nil
	}
	return &types.JWTSVID{Token: t.Token, Id: ID(id), ExpiresAt: t.ExpiresAt.Unix(), IssuedAt: t.IssuedAt.Unix()}
}

// WITSVID returns the token as the SVID of id; nil for no token.
func WITSVID(id spiffeid.ID, t ca.Token) *types.WITSVID {
	if t.Token == "" {
		return nil
	}
	return &types.WITSVID{Token: t.Token, Id: ID(id), ExpiresAt: t.ExpiresAt.Unix(), IssuedAt: t.IssuedAt.Unix()}
}

// Agent returns the masked fields; the id is always there.
func Agent(n *nodes.Node, m *types.AgentMask) *types.Agent {
	if m == nil {
		m = &types.AgentMask{AttestationType: true, X509SvidSerialNumber: true, X509SvidExpiresAt: true, Selectors: true, Banned: true, CanReattest: true, AgentVersion: true}
	}
	p := &types.Agent{Id: ID(n.ID)}
	set(m.AttestationType, &p.AttestationType, n.AttestationType)
	set(m.X509SvidSerialNumber, &p.X509SvidSerialNumber, n.Serial)
	set(m.X509SvidExpiresAt, &p.X509SvidExpiresAt, unixSeconds(n.NotAfter))
	set(m.Banned, &p.Banned, n.State == nodes.StateBanned)
	set(m.CanReattest, &p.CanReattest, n.CanReattest)
	set(m.AgentVersion, &p.AgentVersion, n.AgentVersion)
	if m.Selectors {
		p.Selectors = selectorsOf(n.Selectors)
	}
	return p
}
