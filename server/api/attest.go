// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/x509"
	"fmt"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
)

// AttestAgent admits a node: parameters, any number of challenges, result.
func (s *agentService) AttestAgent(stream agentv1.Agent_AttestAgentServer) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "failed to receive request from stream: %v", err)
	}
	params := first.GetParams()
	if err := wire.CheckAttestParams(params); err != nil {
		return err
	}
	attestor, ok := s.attestors[params.Data.Type]
	if !ok {
		return status.Errorf(codes.FailedPrecondition, "error getting node attestor: could not find node attestor type %q; configure it on the server", params.Data.Type)
	}
	// Before the attestor: a bad CSR must not spend a join token.
	csr, err := x509.ParseCertificateRequest(params.Params.Csr)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "failed to parse CSR: %v", err)
	}
	verdict, err := attestor.Attest(ctx, params.Data.Payload, csr.PublicKey, gate.ChannelBinding(ctx), challenger(stream))
	if err != nil {
		return wire.AttestError(err)
	}
	chain, err := s.enrol(ctx, verdict, csr)
	if err != nil {
		return err
	}
	for _, c := range verdict.Checks {
		gate.Log(ctx).Debug("node attestation check passed", "agent", verdict.ID, "check", c.Name, "detail", c.Detail)
	}
	gate.Log(ctx).Info("node admitted", "agent", verdict.ID, "attestor", attestor.Type(), "checks", len(verdict.Checks), "svid_serial", chain[0].SerialNumber)
	return stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: &agentv1.AttestAgentResponse_Result{
		Svid:         wire.SVID(verdict.ID, chain),
		Reattestable: verdict.CanReattest,
	}}})
}

// enrol signs the agent's SVID and records the node.
func (s *agentService) enrol(ctx context.Context, a nodes.Attestation, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
	if a.ID.TrustDomain() != s.cfg.TrustDomain || !nodes.IsAgentID(a.ID) {
		return nil, status.Errorf(codes.Internal, "the attestor gave the agent the ID %q, which is not one of an agent", a.ID)
	}
	if a.Pending != "" {
		return nil, wire.RefusedToAttest(s.cfg.Nodes.Hold(ctx, a))
	}
	if err := s.cfg.Nodes.Admissible(a.ID); err != nil {
		return nil, wire.RefusedToAttest(err)
	}
	chain, err := s.cfg.Signer.SignAgent(a.ID, csr.PublicKey)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign: %w", err))
	}
	if err := s.issuedTo(ctx, chain[0], revocation.Record{}); err != nil {
		return nil, err
	}
	if _, err = s.cfg.Nodes.Attested(ctx, a, chain[0].SerialNumber.String(), chain[0].NotAfter); err != nil {
		return nil, wire.RefusedToAttest(err)
	}
	return chain, nil
}

// challenger sends a challenge to the agent and waits for its answer.
func challenger(stream agentv1.Agent_AttestAgentServer) func(context.Context, []byte) ([]byte, error) {
	return func(_ context.Context, challenge []byte) ([]byte, error) {
		err := stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Challenge{Challenge: challenge}})
		if err != nil {
			return nil, status.Errorf(codes.Internal, "failed to send challenge to agent: %v", err)
		}
		answer, err := stream.Recv()
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "failed to receive challenge response from agent: %v", err)
		}
		return answer.GetChallengeResponse(), nil
	}
}
