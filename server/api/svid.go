// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/rego"
)

// svidService is spire.api.server.svid.v1.SVID.
type svidService struct {
	svidv1.UnimplementedSVIDServer
	*Server
}

const (
	maxBatch    = 500 // items in one call, SPIRE's burst
	batchAtOnce = 32
)

func checkBatch(n int) error {
	switch {
	case n == 0:
		return status.Error(codes.InvalidArgument, "missing parameters")
	case n > maxBatch:
		return status.Errorf(codes.ResourceExhausted, "rate (%d) exceeds burst size (%d)", n, maxBatch)
	}
	return nil
}

// trusted looks entries up for an agent that sends no evidence, and says why it must send some.
type trusted struct {
	s       *Server
	agent   spiffeid.ID
	node    selectors.Set
	refusal error
}

func (s *svidService) trusted(ctx context.Context) trusted {
	agent := gate.CallerOf(ctx).ID
	t := trusted{s.Server, agent, s.nodeSelectors(agent), s.withoutEvidence(agent)}
	if t.refusal == nil {
		t.refusal = s.fresh(ctx, agent)
	}
	return t
}

func (t trusted) prove(entryID string) (proof, error) {
	if entryID == "" {
		return proof{}, status.Error(codes.InvalidArgument, "missing entry ID")
	}
	e := t.s.cfg.Entries.AuthorizedEntry(t.agent, t.node, entryID)
	if e == nil {
		return proof{}, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	return proof{entry: e, agent: t.agent}, t.refusal
}

// BatchNewX509SVID signs for entries of the calling agent without evidence. Results are in the
// order of the parameters, one each, and always with a status.
func (s *svidService) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	if err := checkBatch(len(req.Params)); err != nil {
		return nil, err
	}
	t := s.trusted(ctx)
	resp := &svidv1.BatchNewX509SVIDResponse{Results: make([]*svidv1.BatchNewX509SVIDResponse_Result, len(req.Params))}
	var group errgroup.Group // they share a flush of what is written down
	group.SetLimit(batchAtOnce)
	for i, params := range req.Params {
		group.Go(func() error {
			p, chain, err := s.newX509SVID(ctx, t, params)
			resp.Results[i] = &svidv1.BatchNewX509SVIDResponse_Result{Status: wire.ItemStatus(err)}
			if err == nil {
				resp.Results[i].Svid = wire.SVID(p.entry.SPIFFEID, chain)
			}
			return nil
		})
	}
	return resp, group.Wait()
}

func (s *svidService) newX509SVID(ctx context.Context, t trusted, params *svidv1.NewX509SVIDParams) (proof, []*x509.Certificate, error) {
	if params.GetEntryId() == "" {
		return proof{}, nil, status.Error(codes.InvalidArgument, "missing entry ID")
	}
	csr, err := wire.ReadCSR(params.Csr)
	if err != nil {
		return proof{}, nil, err
	}
	p, err := t.prove(params.EntryId)
	if err != nil {
		return proof{}, nil, err
	}
	chain, err := s.signX509(ctx, &p, csr.PublicKey)
	return p, chain, err
}

// NewJWTSVID signs for an entry of the calling agent without evidence.
func (s *svidService) NewJWTSVID(ctx context.Context, req *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	p, err := s.trusted(ctx).prove(req.EntryId)
	if err != nil {
		return nil, err
	}
	token, err := s.signJWT(ctx, &p, req.Audience)
	return &svidv1.NewJWTSVIDResponse{Svid: wire.JWTSVID(p.entry.SPIFFEID, token)}, err
}

// BatchNewWITSVID is BatchNewX509SVID for WIT-SVIDs; here too, each result has a status (SPIRE's
// has none when all is well).
func (s *svidService) BatchNewWITSVID(ctx context.Context, req *svidv1.BatchNewWITSVIDRequest) (*svidv1.BatchNewWITSVIDResponse, error) {
	if err := checkBatch(len(req.Params)); err != nil {
		return nil, err
	}
	t := s.trusted(ctx)
	resp := &svidv1.BatchNewWITSVIDResponse{}
	for _, params := range req.Params {
		p, err := t.prove(params.GetEntryId())
		var token ca.Token
		if err == nil {
			token, err = s.signWIT(ctx, &p, params.PublicKey, params.SigningAlgorithm)
		}
		result := &svidv1.BatchNewWITSVIDResponse_Result{Status: wire.ItemStatus(err)}
		if err == nil {
			result.Svid = wire.WITSVID(p.entry.SPIFFEID, token)
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
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

// The three that sign for agents ask the policy first, and write down what was signed.
func (s *Server) signX509(ctx context.Context, p *proof, key crypto.PublicKey) ([]*x509.Certificate, error) {
	ttl, err := s.permit(ctx, p, rego.X509, p.entry.X509SVIDTTL, nil)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Signer.SignWorkload(ca.Request{ID: p.entry.SPIFFEID, PublicKey: key, TTL: ttl, DNSNames: p.entry.DNSNames})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign X509-SVID: %w", err))
	}
	if err := s.record(ctx, p, chain[0]); err != nil {
		return nil, err
	}
	p.issued(ctx, "X.509-SVID", chain[0].NotAfter, "serial", chain[0].SerialNumber)
	return chain, nil
}

func (s *Server) signJWT(ctx context.Context, p *proof, audience []string) (ca.Token, error) {
	ttl, err := s.permit(ctx, p, rego.JWT, p.entry.JWTSVIDTTL, audience)
	if err != nil {
		return ca.Token{}, err
	}
	token, err := s.cfg.Signer.SignJWT(ca.JWTRequest{ID: p.entry.SPIFFEID, Audience: audience, TTL: ttl, JTI: includeJTI(p.entry)})
	if err != nil {
		return token, wire.Error(fmt.Errorf("failed to sign JWT-SVID: %w", err))
	}
	p.issued(ctx, "JWT-SVID", token.ExpiresAt, "kid", token.KeyID, "audience", audience)
	return token, nil
}

// signWIT: a WIT-SVID lives as long as an X.509-SVID, since it too is bound to a key (as SPIRE).
func (s *Server) signWIT(ctx context.Context, p *proof, publicKey []byte, algorithm string) (ca.Token, error) {
	key, err := wire.ReadPublicKey(publicKey)
	if err != nil {
		return ca.Token{}, err
	}
	ttl, err := s.permit(ctx, p, rego.WIT, p.entry.X509SVIDTTL, nil)
	if err != nil {
		return ca.Token{}, err
	}
	token, err := s.cfg.Signer.SignWIT(ca.WITRequest{ID: p.entry.SPIFFEID, PublicKey: key, Algorithm: algorithm, TTL: ttl, JTI: includeJTI(p.entry)})
	if err != nil {
		return token, wire.Error(fmt.Errorf("failed to sign WIT-SVID: %w", err))
	}
	p.issued(ctx, "WIT-SVID", token.ExpiresAt, "kid", token.KeyID)
	return token, nil
}

func includeJTI(e *selectors.Entry) bool {
	return e.Attributes != nil && e.Attributes.JWTSVIDIncludeJTI
}
