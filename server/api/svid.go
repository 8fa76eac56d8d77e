// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/gate"
)

// svidService is spire.api.server.svid.v1.SVID. JWT- and WIT-SVIDs are not there yet; see
// unsupported.
type svidService struct {
	svidv1.UnimplementedSVIDServer
	*Server
}

const maxBatch = 500 // CSRs in one call, SPIRE's burst

// BatchNewX509SVID signs for entries of the calling agent without evidence. Results are in the
// order of the parameters, one each, and always with a status.
func (s *svidService) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	switch n := len(req.Params); {
	case n == 0:
		return nil, status.Error(codes.InvalidArgument, "missing parameters")
	case n > maxBatch:
		return nil, status.Errorf(codes.ResourceExhausted, "rate (%d) exceeds burst size (%d)", n, maxBatch)
	}
	agent := gate.CallerOf(ctx).ID
	node := s.nodeSelectors(agent)
	lookup := func(id string) *selectors.Entry { return s.cfg.Entries.AuthorizedEntry(agent, node, id) }
	refusal := s.withoutEvidence(agent)
	if refusal == nil {
		refusal = s.fresh(ctx, agent)
	}
	resp := &svidv1.BatchNewX509SVIDResponse{}
	for _, p := range req.Params {
		e, chain, err := s.newX509SVID(p, lookup, refusal)
		result := &svidv1.BatchNewX509SVIDResponse_Result{Status: wire.ItemStatus(err)}
		if err == nil {
			result.Svid = wire.SVID(e.SPIFFEID, chain)
			s.issued(e, agent, chain[0], "none")
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

func (s *svidService) newX509SVID(p *svidv1.NewX509SVIDParams, lookup func(string) *selectors.Entry, refusal error) (*selectors.Entry, []*x509.Certificate, error) {
	if p.GetEntryId() == "" {
		return nil, nil, status.Error(codes.InvalidArgument, "missing entry ID")
	}
	csr, err := wire.ReadCSR(p.Csr)
	if err != nil {
		return nil, nil, err
	}
	e := lookup(p.EntryId)
	if e == nil {
		return nil, nil, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	if refusal != nil {
		return nil, nil, refusal
	}
	chain, err := s.signEntry(e, csr)
	return e, chain, err
}

// withoutEvidence says why the agent must send evidence, or nil if it need not.
func (s *Server) withoutEvidence(agent spiffeid.ID) error {
	n := s.cfg.Nodes.Get(agent)
	if n != nil && slices.Contains(s.cfg.AllowWithoutEvidence, n.AttestationType) {
		return nil
	}
	kind := "unknown"
	if n != nil {
		kind = n.AttestationType
	}
	return status.Errorf(codes.FailedPrecondition,
		"this server signs for agents attested by %q only on evidence; use an Assay agent, or add %q to allow_without_evidence in the server's configuration", kind, kind)
}

func (s *Server) signEntry(e *selectors.Entry, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
	chain, err := s.cfg.Signer.SignWorkload(ca.Request{ID: e.SPIFFEID, PublicKey: csr.PublicKey, TTL: e.X509SVIDTTL, DNSNames: e.DNSNames})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign X509-SVID: %w", err))
	}
	return chain, nil
}

// issued records who was given what, and on how strong evidence.
func (s *Server) issued(e *selectors.Entry, agent spiffeid.ID, cert *x509.Certificate, evidence string, more ...any) {
	s.cfg.Logger.Info("X.509-SVID signed", append([]any{"spiffe_id", e.SPIFFEID, "entry", e.ID, "agent", agent,
		"serial", cert.SerialNumber, "expires_at", cert.NotAfter, "evidence", evidence}, more...)...)
}

// MintX509SVID signs what an operator's CSR asks for.
func (s *svidService) MintX509SVID(_ context.Context, req *svidv1.MintX509SVIDRequest) (*svidv1.MintX509SVIDResponse, error) {
	csr, id, err := wire.ReadMintCSR(s.cfg.TrustDomain, req.Csr)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Signer.SignWorkload(ca.Request{
		ID: id, PublicKey: csr.PublicKey, TTL: time.Duration(req.Ttl) * time.Second, DNSNames: csr.DNSNames, Subject: csr.Subject,
	})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign X509-SVID: %w", err))
	}
	s.cfg.Logger.Info("X.509-SVID minted for an operator", "spiffe_id", id, "serial", chain[0].SerialNumber, "expires_at", chain[0].NotAfter)
	return &svidv1.MintX509SVIDResponse{Svid: wire.SVID(id, chain)}, nil
}
