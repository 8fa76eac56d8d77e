// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/gate"
)

// trustDomainService is spire.api.server.trustdomain.v1.TrustDomain: relationships that operators
// make while the server runs.
type trustDomainService struct {
	trustdomainv1.UnimplementedTrustDomainServer
	*Services
}

const ownRelationship = "unable to create federation relationship for server trust domain"

// ListFederationRelationships lists relationships, with the bundles as they are known now.
func (s *trustDomainService) ListFederationRelationships(ctx context.Context, req *trustdomainv1.ListFederationRelationshipsRequest) (*trustdomainv1.ListFederationRelationshipsResponse, error) {
	list, next, err := s.Federation.ListRelationships(int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to list federation relationships: %w", err))
	}
	resp := &trustdomainv1.ListFederationRelationshipsResponse{NextPageToken: next}
	for _, r := range list {
		if gate.ScopeOf(ctx).TrustDomain(r.TrustDomain) == nil {
			resp.FederationRelationships = append(resp.FederationRelationships, s.relationship(r, req.OutputMask))
		}
	}
	return resp, nil
}

func (s *trustDomainService) relationship(r federation.Relationship, mask *types.FederationRelationshipMask) *types.FederationRelationship {
	return wire.Relationship(r, s.Federation.Bundle(r.TrustDomain), mask)
}

// GetFederationRelationship returns one relationship.
func (s *trustDomainService) GetFederationRelationship(ctx context.Context, req *trustdomainv1.GetFederationRelationshipRequest) (*types.FederationRelationship, error) {
	td, err := wire.ReadTrustDomain(req.TrustDomain)
	if err == nil {
		err = gate.ScopeOf(ctx).TrustDomain(td)
	}
	if err != nil {
		return nil, err
	}
	r, ok := s.Federation.Relationship(td)
	if !ok {
		return nil, status.Error(codes.NotFound, "federation relationship does not exist")
	}
	return s.relationship(r, req.OutputMask), nil
}

// BatchCreateFederationRelationship begins relationships; a bundle that comes with one replaces
// the one that is known.
func (s *trustDomainService) BatchCreateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchCreateFederationRelationshipRequest) (*trustdomainv1.BatchCreateFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchCreateFederationRelationshipResponse{}
	each(req.FederationRelationships, "create", "federation relationship", func(p *types.FederationRelationship) (*types.FederationRelationship, error) {
		td, err := s.foreign(ctx, p.GetTrustDomain(), ownRelationship)
		if err != nil {
			return nil, err
		}
		n := federation.NewRelationship{Relationship: federation.Relationship{TrustDomain: td}}
		if n.Bundle, err = wire.ReadFirstBundle(p, nil); err != nil {
			return nil, err
		}
		if err := wire.SetRelationship(&n.Relationship, p, nil); err != nil {
			return nil, err
		}
		return s.stored(ctx, "create", s.Federation.CreateRelationships(ctx, []federation.NewRelationship{n})[0], req.OutputMask)
	}, func(st *types.Status, _, r *types.FederationRelationship) {
		resp.Results = append(resp.Results, &trustdomainv1.BatchCreateFederationRelationshipResponse_Result{Status: st, FederationRelationship: r})
	})
	return resp, nil
}

// stored notes what became of a relationship.
func (s *trustDomainService) stored(ctx context.Context, what string, r federation.Result[federation.Relationship], mask *types.FederationRelationshipMask) (*types.FederationRelationship, error) {
	if r.Err != nil {
		return nil, r.Err
	}
	gate.Log(ctx).Info("federation relationship changed by an operator", "change", what, "federated_trust_domain", r.TrustDomain.Name(), "url", r.Value.URL, "profile", r.Value.Profile)
	return s.relationship(r.Value, mask), nil
}

// BatchUpdateFederationRelationship replaces the fields of the input mask; all without one.
func (s *trustDomainService) BatchUpdateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchUpdateFederationRelationshipRequest) (*trustdomainv1.BatchUpdateFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchUpdateFederationRelationshipResponse{}
	each(req.FederationRelationships, "update", "federation relationship", func(p *types.FederationRelationship) (*types.FederationRelationship, error) {
		td, err := s.foreign(ctx, p.GetTrustDomain(), ownRelationship)
		if err != nil {
			return nil, err
		}
		u := federation.RelationshipUpdate{TrustDomain: td, Change: func(r *federation.Relationship) error { return wire.SetRelationship(r, p, req.InputMask) }}
		if u.Bundle, err = wire.ReadFirstBundle(p, req.InputMask); err != nil {
			return nil, err
		}
		return s.stored(ctx, "update", s.Federation.UpdateRelationships(ctx, []federation.RelationshipUpdate{u})[0], req.OutputMask)
	}, func(st *types.Status, _, r *types.FederationRelationship) {
		resp.Results = append(resp.Results, &trustdomainv1.BatchUpdateFederationRelationshipResponse_Result{Status: st, FederationRelationship: r})
	})
	return resp, nil
}

// BatchDeleteFederationRelationship ends relationships; the bundles stay.
func (s *trustDomainService) BatchDeleteFederationRelationship(ctx context.Context, req *trustdomainv1.BatchDeleteFederationRelationshipRequest) (*trustdomainv1.BatchDeleteFederationRelationshipResponse, error) {
	resp := &trustdomainv1.BatchDeleteFederationRelationshipResponse{}
	each(req.TrustDomains, "delete", "federation relationship", func(name string) (*types.FederationRelationship, error) {
		td, err := wire.ReadTrustDomain(name)
		if err == nil {
			err = gate.ScopeOf(ctx).TrustDomain(td)
		}
		if err != nil {
			return nil, err
		}
		return s.stored(ctx, "delete", s.Federation.DeleteRelationships(ctx, []spiffeid.TrustDomain{td})[0], nil)
	}, func(st *types.Status, name string, _ *types.FederationRelationship) {
		resp.Results = append(resp.Results, &trustdomainv1.BatchDeleteFederationRelationshipResponse_Result{Status: st, TrustDomain: name})
	})
	return resp, nil
}

// RefreshBundle fetches a bundle now and waits for it.
func (s *trustDomainService) RefreshBundle(ctx context.Context, req *trustdomainv1.RefreshBundleRequest) (*emptypb.Empty, error) {
	td, err := wire.ReadTrustDomain(req.TrustDomain)
	if err == nil {
		err = gate.ScopeOf(ctx).TrustDomain(td)
	}
	if err != nil {
		return nil, err
	}
	if err := s.Federation.RefreshBundle(ctx, td); errors.Is(err, federation.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "no relationship with trust domain %q", td.Name())
	} else if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to refresh bundle: %w", err))
	}
	return &emptypb.Empty{}, nil
}
