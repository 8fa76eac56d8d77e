// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/revocation"
)

// MintX509SVID signs what an operator's CSR asks for.
func (s *svidService) MintX509SVID(ctx context.Context, req *svidv1.MintX509SVIDRequest) (*svidv1.MintX509SVIDResponse, error) {
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
	if err := s.issuedTo(ctx, chain[0], revocation.Record{}); err != nil {
		return nil, err
	}
	gate.Log(ctx).Info("X.509-SVID minted for an operator", "spiffe_id", id, "serial", chain[0].SerialNumber, "expires_at", chain[0].NotAfter)
	return &svidv1.MintX509SVIDResponse{Svid: wire.SVID(id, chain)}, nil
}

// mintID reads the ID that an operator wants a token for.
func (s *svidService) mintID(p *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := wire.ReadWorkloadID(s.cfg.TrustDomain, p)
	if err != nil {
		return id, status.Errorf(codes.InvalidArgument, "invalid SPIFFE ID: %v", err)
	}
	return id, nil
}

// MintJWTSVID signs what an operator asks for.
func (s *svidService) MintJWTSVID(ctx context.Context, req *svidv1.MintJWTSVIDRequest) (*svidv1.MintJWTSVIDResponse, error) {
	id, err := s.mintID(req.Id)
	if err != nil {
		return nil, err
	}
	token, err := s.cfg.Signer.SignJWT(ca.JWTRequest{ID: id, Audience: req.Audience, TTL: time.Duration(req.Ttl) * time.Second})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign JWT-SVID: %w", err))
	}
	gate.Log(ctx).Info("JWT-SVID minted for an operator", "spiffe_id", id, "kid", token.KeyID, "expires_at", token.ExpiresAt, "audience", req.Audience)
	return &svidv1.MintJWTSVIDResponse{Svid: wire.JWTSVID(id, token)}, nil
}

// MintWITSVID signs what an operator asks for.
func (s *svidService) MintWITSVID(ctx context.Context, req *svidv1.MintWITSVIDRequest) (*svidv1.MintWITSVIDResponse, error) {
	id, err := s.mintID(req.Id)
	if err != nil {
		return nil, err
	}
	key, err := wire.ReadPublicKey(req.PublicKey)
	if err != nil {
		return nil, err
	}
	token, err := s.cfg.Signer.SignWIT(ca.WITRequest{ID: id, PublicKey: key, Algorithm: req.SigningAlgorithm, TTL: time.Duration(req.Ttl) * time.Second})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign WIT-SVID: %w", err))
	}
	gate.Log(ctx).Info("WIT-SVID minted for an operator", "spiffe_id", id, "kid", token.KeyID, "expires_at", token.ExpiresAt)
	return &svidv1.MintWITSVIDResponse{Svid: wire.WITSVID(id, token)}, nil
}

// NewDownstreamX509CA signs the CA certificate of a nested server; of the CSR only the key counts.
func (s *svidService) NewDownstreamX509CA(ctx context.Context, req *svidv1.NewDownstreamX509CARequest) (*svidv1.NewDownstreamX509CAResponse, error) {
	csr, err := wire.ReadCSR(req.Csr)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Signer.SignDownstream(ca.DownstreamRequest{PublicKey: csr.PublicKey, TTL: time.Duration(req.PreferredTtl) * time.Second})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign downstream X.509 CA: %w", err))
	}
	if err := s.issuedTo(ctx, chain[0], revocation.Record{}); err != nil {
		return nil, err
	}
	resp := &svidv1.NewDownstreamX509CAResponse{}
	for _, cert := range chain {
		resp.CaCertChain = append(resp.CaCertChain, cert.Raw)
	}
	b, _ := s.cfg.Signer.Bundle()
	for _, root := range b.Roots() {
		resp.X509Authorities = append(resp.X509Authorities, root.Raw)
	}
	gate.Log(ctx).Info("CA of a nested server signed", "serial", chain[0].SerialNumber, "expires_at", chain[0].NotAfter)
	return resp, nil
}
