// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/api/trust"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
)

// Revocations is what the API needs of server/revocation; to sign, and for package trust.
type Revocations interface {
	// Issued returns when it is on disk that these were signed; before that nobody may have them.
	Issued(ctx context.Context, records ...revocation.Record) error
	Revoked(cert *x509.Certificate) bool
	RevokeForNode(ctx context.Context, node string, req revocation.Request) (revocation.Outcome, error)
	trust.Revocations
}

// issuedTo writes down that an SVID was signed; r says for whom.
func (s *Server) issuedTo(ctx context.Context, leaf *x509.Certificate, r revocation.Record) error {
	r.Authority, r.Serial = revocation.KeyOf(leaf)
	r.NotAfter = leaf.NotAfter
	if len(leaf.URIs) == 1 {
		r.SPIFFEID = leaf.URIs[0].String()
	}
	if err := s.cfg.Revocations.Issued(ctx, r); err != nil {
		return status.Errorf(codes.Unavailable, "the SVID was signed and is not given out: %v", err)
	}
	return nil
}

// record writes down what was signed for a workload. A node that ceased to be admitted meanwhile does not get it: what it has
// is revoked at that moment, and this may be too late for that.
func (s *Server) record(ctx context.Context, p *proof, leaf *x509.Certificate) error {
	r := revocation.Record{Node: p.agent.String(), Entry: p.entry.ID}
	if p.facts != nil {
		r.SHA256 = p.facts.Executable.SHA256
	}
	if err := s.issuedTo(ctx, leaf, r); err != nil {
		return err
	}
	if n := s.cfg.Nodes.Get(p.agent); n == nil || n.State != nodes.StateAdmitted {
		return status.Errorf(codes.PermissionDenied, "agent %q is not admitted any more", p.agent)
	}
	return nil
}

func (s *Server) revoked(cert *x509.Certificate) bool { return s.cfg.Revocations.Revoked(cert) }

// revokedAgent is the refusal of an agent's SVID that is revoked.
func (s *Server) revokedAgent(c gate.Caller) error {
	if c.Cert != nil && s.revoked(c.Cert) {
		return &nodes.DeniedError{Agent: c.ID, Reason: nodes.NotActive}
	}
	return nil
}

// lists are all revocation lists, and a channel that is closed when they change.
func (s *nodeService) lists() (*nodev1.RevocationLists, <-chan struct{}) {
	all, changed := s.cfg.Revocations.CRLs()
	msg := &nodev1.RevocationLists{}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		msg.Crls = append(msg.Crls, all[id])
	}
	return msg, changed
}

const maxWhy = 500 // bytes

// RevokeSVID revokes what was signed for the calling agent, and nothing else: the servers compare with what they wrote down.
func (s *nodeService) RevokeSVID(ctx context.Context, req *nodev1.RevokeSVIDRequest) (*nodev1.RevokeSVIDResponse, error) {
	cert, err := x509.ParseCertificate(req.Certificate)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "malformed certificate: %v", err)
	}
	if len(req.Why) > maxWhy {
		return nil, status.Errorf(codes.InvalidArgument, "the reason is longer than %d bytes", maxWhy)
	}
	agent := gate.CallerOf(ctx).ID
	authority, serial := revocation.KeyOf(cert)
	out, err := s.cfg.Revocations.RevokeForNode(ctx, agent.String(), revocation.Request{
		Scope: revocation.Scope{Authority: authority, Serial: serial}, Reason: int(req.Reason), Why: req.Why,
	})
	switch {
	case err != nil:
		return nil, wire.RevocationError(err)
	case out.Revoked == 0 && len(out.Waiting) == 0:
		return nil, status.Errorf(codes.PermissionDenied, "no SVID with serial %s was signed for agent %q", serial, agent)
	}
	gate.Log(ctx).Warn("an agent revoked an SVID", "agent", agent, "serial", serial, "why", req.Why, "waiting_for", out.Waiting)
	return &nodev1.RevokeSVIDResponse{}, nil
}

// RevocationChanged has the open streams of an agent whose own SVID was revoked checked.
func (w *Streams) RevocationChanged(rev *revocation.Revocation) {
	if id, err := spiffeid.FromString(rev.SPIFFEID); err == nil && nodes.IsAgentID(id) {
		w.NodeChanged(id)
	}
}
