// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
)

// agentService is spire.api.server.agent.v1.Agent.
type agentService struct {
	agentv1.UnimplementedAgentServer
	*Server
}

const maxVersion = 255

// RenewAgent signs a new SVID for the caller. It becomes active when it is first used, so a
// lost reply costs nothing.
func (s *agentService) RenewAgent(ctx context.Context, req *agentv1.RenewAgentRequest) (*agentv1.RenewAgentResponse, error) {
	id := gate.CallerOf(ctx).ID
	if err := s.cfg.Nodes.Renewable(ctx, id); err != nil {
		return nil, wire.AgentError(err)
	}
	switch {
	case req.Params == nil:
		return nil, status.Error(codes.InvalidArgument, "params cannot be nil")
	case len(req.Params.Csr) == 0:
		return nil, status.Error(codes.InvalidArgument, "missing CSR")
	}
	csr, err := x509.ParseCertificateRequest(req.Params.Csr)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "failed to parse CSR: %v", err)
	}
	chain, err := s.cfg.Signer.SignAgent(id, csr.PublicKey)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to sign: %w", err))
	}
	if err := s.issuedTo(ctx, chain[0], revocation.Record{}); err != nil {
		return nil, err
	}
	if err := s.cfg.Nodes.Renewed(ctx, id, chain[0].SerialNumber.String(), chain[0].NotAfter); err != nil {
		return nil, wire.AgentError(err)
	}
	return &agentv1.RenewAgentResponse{Svid: wire.SVID(id, chain)}, nil
}

// PostStatus notes the agent's version.
func (s *agentService) PostStatus(ctx context.Context, req *agentv1.PostStatusRequest) (*agentv1.PostStatusResponse, error) {
	if len(req.AgentVersion) > maxVersion {
		return nil, status.Errorf(codes.InvalidArgument, "agent version is longer than %d bytes", maxVersion)
	}
	if req.AgentVersion != "" {
		if err := s.cfg.Nodes.SetVersion(ctx, gate.CallerOf(ctx).ID, req.AgentVersion); err != nil {
			return nil, wire.AgentError(err)
		}
	}
	return &agentv1.PostStatusResponse{}, nil
}

// CountAgents counts the nodes that pass the filter.
func (s *agentService) CountAgents(ctx context.Context, req *agentv1.CountAgentsRequest) (*agentv1.CountAgentsResponse, error) {
	scope, filter := gate.ScopeOf(ctx), wire.ReadAgentFilter(req.GetFilter())
	if scope.All() {
		n, err := s.cfg.Nodes.Count(filter)
		if err != nil {
			return nil, wire.Error(fmt.Errorf("failed to count agents: %w", err))
		}
		return &agentv1.CountAgentsResponse{Count: int32(n)}, nil
	}
	list, _, err := s.cfg.Nodes.List(filter, 0, "")
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to count agents: %w", err))
	}
	within := slices.DeleteFunc(list, func(n *nodes.Node) bool { return scope.Node(n.ID) != nil })
	return &agentv1.CountAgentsResponse{Count: int32(len(within))}, nil
}

// ListAgents lists the nodes that pass the filter, in the order in which they came.
func (s *agentService) ListAgents(ctx context.Context, req *agentv1.ListAgentsRequest) (*agentv1.ListAgentsResponse, error) {
	list, next, err := s.cfg.Nodes.List(wire.ReadAgentFilter(req.GetFilter()), int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to list agents: %w", err))
	}
	resp := &agentv1.ListAgentsResponse{NextPageToken: next}
	for _, n := range list {
		if gate.ScopeOf(ctx).Node(n.ID) == nil {
			resp.Agents = append(resp.Agents, wire.Agent(n, req.OutputMask))
		}
	}
	return resp, nil
}

// GetAgent returns one node.
func (s *agentService) GetAgent(ctx context.Context, req *agentv1.GetAgentRequest) (*types.Agent, error) {
	id, err := wire.ReadAgentID(s.cfg.TrustDomain, req.Id)
	if err == nil {
		err = gate.ScopeOf(ctx).Node(id)
	}
	if err != nil {
		return nil, err
	}
	n := s.cfg.Nodes.Get(id)
	if n == nil {
		return nil, status.Error(codes.NotFound, "agent not found")
	}
	return wire.Agent(n, req.OutputMask), nil
}

// BanAgent refuses the node until it is deleted.
func (s *agentService) BanAgent(ctx context.Context, req *agentv1.BanAgentRequest) (*emptypb.Empty, error) {
	id, err := wire.ReadAgentID(s.cfg.TrustDomain, req.Id)
	if err == nil {
		err = gate.ScopeOf(ctx).Node(id)
	}
	if err != nil {
		return nil, err
	}
	by := gate.CallerOf(ctx).Operator()
	if err := s.cfg.Nodes.Ban(ctx, id, "", by); err != nil {
		return nil, wire.AgentError(err)
	}
	gate.Log(ctx).Info("node banned", "agent", id, "by", by)
	return &emptypb.Empty{}, nil
}

// DeleteAgent forgets the node, and the entry that its join token made.
func (s *agentService) DeleteAgent(ctx context.Context, req *agentv1.DeleteAgentRequest) (*emptypb.Empty, error) {
	id, err := wire.ReadAgentID(s.cfg.TrustDomain, req.Id)
	if err == nil {
		err = gate.ScopeOf(ctx).Node(id)
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Nodes.Delete(ctx, id); err != nil {
		return nil, wire.AgentError(err)
	}
	gate.Log(ctx).Info("node evicted", "agent", id, "by", gate.CallerOf(ctx).Operator())
	below, _, err := s.cfg.Entries.List(entries.Filter{ParentID: id}, 0, "")
	if err != nil {
		return nil, wire.Error(err)
	}
	var aliases []string
	for _, e := range below {
		if nodes.IsAliasEntry(e, id) {
			aliases = append(aliases, e.ID)
		}
	}
	for _, res := range s.cfg.Entries.Delete(ctx, aliases) {
		if res.Err != nil && !errors.Is(res.Err, entries.ErrNotFound) {
			return nil, wire.Error(fmt.Errorf("the agent is deleted, but not the entry of its join token: %w", res.Err))
		}
	}
	return &emptypb.Empty{}, nil
}

// CreateJoinToken makes a token that admits one agent, and with agent_id an entry that gives
// it that identity as an alias.
func (s *agentService) CreateJoinToken(ctx context.Context, req *agentv1.CreateJoinTokenRequest) (*types.JoinToken, error) {
	if req.Ttl < 1 {
		return nil, status.Error(codes.InvalidArgument, "ttl is required, you must provide one")
	}
	var alias spiffeid.ID
	if req.AgentId != nil {
		var err error
		if alias, err = wire.ReadWorkloadID(s.cfg.TrustDomain, req.AgentId); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid agent ID: %v", err)
		}
	}
	token := req.Token
	if token == "" {
		token = uuid.NewString()
	}
	agent, err := nodes.JoinTokenAgent(s.cfg.TrustDomain, token)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	expires, err := s.cfg.Nodes.CreateJoinToken(ctx, token, time.Duration(req.Ttl)*time.Second)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to create token: %w", err))
	}
	if !alias.IsZero() {
		res := s.cfg.Entries.Create(ctx, []*selectors.Entry{{SPIFFEID: alias, ParentID: agent, Selectors: []selectors.Selector{nodes.IDSelector(agent)}}})[0]
		if res.Err != nil && !errors.Is(res.Err, entries.ErrSimilar) {
			return nil, wire.Error(fmt.Errorf("failed to create join token registration entry: %w", res.Err))
		}
	}
	return &types.JoinToken{Value: token, ExpiresAt: expires.Unix()}, nil
}
