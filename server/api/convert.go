// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/nodes"
)

// idFromProto reads an ID; a nil or empty message is an error.
func idFromProto(p *types.SPIFFEID) (spiffeid.ID, error) {
	if p == nil {
		return spiffeid.ID{}, fmt.Errorf("request must specify SPIFFE ID")
	}
	td, err := spiffeid.TrustDomainFromString(p.TrustDomain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, p.Path)
}

func idToProto(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func selectorsFromProto(ps []*types.Selector) []selectors.Selector {
	out := make([]selectors.Selector, 0, len(ps))
	for _, p := range ps {
		out = append(out, selectors.Selector{Type: p.GetType(), Value: p.GetValue()})
	}
	return out
}

func selectorsToProto(ss []selectors.Selector) []*types.Selector {
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

func toUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// allFields is what a nil mask means.
var allFields = &types.EntryMask{
	SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, FederatesWith: true, Admin: true,
	Downstream: true, ExpiresAt: true, DnsNames: true, RevisionNumber: true, StoreSvid: true, JwtSvidTtl: true,
	Hint: true, CreatedAt: true, AdditionalAttributes: true,
}

func entryMask(m *types.EntryMask) *types.EntryMask {
	if m == nil {
		return allFields
	}
	return m
}

// setEntry writes the masked fields of the message into e. The ID, the revision and the time
// of creation are not a caller's to set.
func setEntry(e *selectors.Entry, p *types.Entry, m *types.EntryMask) error {
	if m.ParentId {
		id, err := idFromProto(p.ParentId)
		if err != nil {
			return &entries.InvalidError{Reason: fmt.Sprintf("invalid parent ID: %v", err)}
		}
		e.ParentID = id
	}
	if m.SpiffeId {
		id, err := idFromProto(p.SpiffeId)
		if err != nil {
			return &entries.InvalidError{Reason: fmt.Sprintf("invalid spiffe ID: %v", err)}
		}
		e.SPIFFEID = id
	}
	if m.FederatesWith {
		e.FederatesWith = nil
		for _, name := range p.FederatesWith {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return &entries.InvalidError{Reason: fmt.Sprintf("invalid federated trust domain: %v", err)}
			}
			e.FederatesWith = append(e.FederatesWith, td.Name())
		}
	}
	set(m.Selectors, &e.Selectors, selectorsFromProto(p.Selectors))
	set(m.X509SvidTtl, &e.X509SVIDTTL, time.Duration(p.X509SvidTtl)*time.Second)
	set(m.JwtSvidTtl, &e.JWTSVIDTTL, time.Duration(p.JwtSvidTtl)*time.Second)
	set(m.Admin, &e.Admin, p.Admin)
	set(m.Downstream, &e.Downstream, p.Downstream)
	set(m.StoreSvid, &e.StoreSVID, p.StoreSvid)
	set(m.DnsNames, &e.DNSNames, p.DnsNames)
	set(m.Hint, &e.Hint, p.Hint)
	set(m.ExpiresAt, &e.ExpiresAt, unixTime(p.ExpiresAt))
	if m.AdditionalAttributes {
		e.Attributes = nil
		if a := p.AdditionalAttributes; a != nil {
			e.Attributes = &selectors.EntryAttributes{DisableX509SVIDPrefetch: a.DisableX509SvidPrefetch, JWTSVIDIncludeJTI: a.JwtSvidIncludeJti}
		}
	}
	return nil
}

func set[T any](masked bool, to *T, value T) {
	if masked {
		*to = value
	}
}

// entryToProto returns the masked fields; the id is always there.
func entryToProto(e *selectors.Entry, mask *types.EntryMask) *types.Entry {
	m := entryMask(mask)
	p := &types.Entry{Id: e.ID}
	if m.SpiffeId {
		p.SpiffeId = idToProto(e.SPIFFEID)
	}
	if m.ParentId {
		p.ParentId = idToProto(e.ParentID)
	}
	if m.Selectors {
		p.Selectors = selectorsToProto(e.Selectors)
	}
	set(m.X509SvidTtl, &p.X509SvidTtl, int32(e.X509SVIDTTL/time.Second))
	set(m.JwtSvidTtl, &p.JwtSvidTtl, int32(e.JWTSVIDTTL/time.Second))
	set(m.FederatesWith, &p.FederatesWith, e.FederatesWith)
	set(m.Admin, &p.Admin, e.Admin)
	set(m.Downstream, &p.Downstream, e.Downstream)
	set(m.StoreSvid, &p.StoreSvid, e.StoreSVID)
	set(m.DnsNames, &p.DnsNames, e.DNSNames)
	set(m.Hint, &p.Hint, e.Hint)
	set(m.ExpiresAt, &p.ExpiresAt, toUnix(e.ExpiresAt))
	set(m.RevisionNumber, &p.RevisionNumber, e.Revision)
	set(m.CreatedAt, &p.CreatedAt, toUnix(e.CreatedAt))
	if a := e.Attributes; m.AdditionalAttributes && a != nil {
		p.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: a.DisableX509SVIDPrefetch, JwtSvidIncludeJti: a.JWTSVIDIncludeJTI}
	}
	return p
}

func svidToProto(id spiffeid.ID, chain []*x509.Certificate) *types.X509SVID {
	p := &types.X509SVID{Id: idToProto(id), ExpiresAt: chain[0].NotAfter.Unix()}
	for _, cert := range chain {
		p.CertChain = append(p.CertChain, cert.Raw)
	}
	return p
}

// bundleToProto returns the masked fields; the trust domain is always there.
func bundleToProto(td spiffeid.TrustDomain, b ca.Bundle, m *types.BundleMask) *types.Bundle {
	p := &types.Bundle{TrustDomain: td.Name()}
	if m == nil || m.SequenceNumber {
		p.SequenceNumber = b.Sequence
	}
	if m == nil || m.X509Authorities {
		for _, cert := range b.X509 {
			p.X509Authorities = append(p.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
		}
	}
	return p
}

// agentToProto returns the masked fields; the id is always there.
func agentToProto(n *nodes.Node, m *types.AgentMask) *types.Agent {
	if m == nil {
		m = &types.AgentMask{AttestationType: true, X509SvidSerialNumber: true, X509SvidExpiresAt: true, Selectors: true, Banned: true, CanReattest: true, AgentVersion: true}
	}
	p := &types.Agent{Id: idToProto(n.ID)}
	set(m.AttestationType, &p.AttestationType, n.AttestationType)
	set(m.X509SvidSerialNumber, &p.X509SvidSerialNumber, n.Serial)
	set(m.X509SvidExpiresAt, &p.X509SvidExpiresAt, toUnix(n.NotAfter))
	set(m.Banned, &p.Banned, n.State == nodes.StateBanned)
	set(m.CanReattest, &p.CanReattest, n.CanReattest)
	set(m.AgentVersion, &p.AgentVersion, n.AgentVersion)
	if m.Selectors {
		p.Selectors = selectorsToProto(n.Selectors)
	}
	return p
}
