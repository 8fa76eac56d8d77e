// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"

	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/gate"
)

// localAuthorityService is spire.api.server.localauthority.v1.LocalAuthority: the same five calls
// for each of three kinds, and two for the upstream authority.
type localAuthorityService struct {
	authorityv1.UnimplementedLocalAuthorityServer
	*Services
}

func message(a *ca.Authority) *authorityv1.AuthorityState {
	if a == nil {
		return nil
	}
	return &authorityv1.AuthorityState{AuthorityId: a.ID, ExpiresAt: a.ExpiresAt.Unix(), UpstreamAuthoritySubjectKeyId: a.UpstreamID}
}

func (s *localAuthorityService) state(k ca.Kind) (active, prepared, old *authorityv1.AuthorityState, _ error) {
	st, err := s.Authorities.State(k)
	return message(st.Active), message(st.Prepared), message(st.Old), wire.Error(err)
}

// GetX509AuthorityState returns this server's two authorities.
func (s *localAuthorityService) GetX509AuthorityState(context.Context, *authorityv1.GetX509AuthorityStateRequest) (*authorityv1.GetX509AuthorityStateResponse, error) {
	active, prepared, old, err := s.state(ca.X509)
	return &authorityv1.GetX509AuthorityStateResponse{Active: active, Prepared: prepared, Old: old}, err
}

// GetJWTAuthorityState returns this server's two authorities.
func (s *localAuthorityService) GetJWTAuthorityState(context.Context, *authorityv1.GetJWTAuthorityStateRequest) (*authorityv1.GetJWTAuthorityStateResponse, error) {
	active, prepared, old, err := s.state(ca.JWT)
	return &authorityv1.GetJWTAuthorityStateResponse{Active: active, Prepared: prepared, Old: old}, err
}

// GetWITAuthorityState returns this server's two authorities.
func (s *localAuthorityService) GetWITAuthorityState(context.Context, *authorityv1.GetWITAuthorityStateRequest) (*authorityv1.GetWITAuthorityStateResponse, error) {
	active, prepared, old, err := s.state(ca.WIT)
	return &authorityv1.GetWITAuthorityStateResponse{Active: active, Prepared: prepared, Old: old}, err
}

// changed notes what an operator did, and words why it could not be done.
func changed(ctx context.Context, what string, k ca.Kind, a ca.Authority, err error) (*authorityv1.AuthorityState, error) {
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to %s %s authority: %w", what, k, err))
	}
	gate.Log(ctx).Info("authority changed by an operator", "change", what, "kind", k.String(), "authority_id", a.ID)
	return message(&a), nil
}

func (s *localAuthorityService) prepare(ctx context.Context, k ca.Kind) (*authorityv1.AuthorityState, error) {
	a, err := s.Authorities.Prepare(ctx, k)
	return changed(ctx, "prepare", k, a, err)
}

func (s *localAuthorityService) activate(ctx context.Context, k ca.Kind, id string) (*authorityv1.AuthorityState, error) {
	a, err := s.Authorities.Activate(ctx, k, id)
	return changed(ctx, "activate", k, a, err)
}

func (s *localAuthorityService) taint(ctx context.Context, k ca.Kind, id string) (*authorityv1.AuthorityState, error) {
	a, err := s.Authorities.Taint(ctx, k, id)
	return changed(ctx, "taint", k, a, err)
}

func (s *localAuthorityService) revoke(ctx context.Context, k ca.Kind, id string) (*authorityv1.AuthorityState, error) {
	a, err := s.Authorities.Revoke(ctx, k, id)
	return changed(ctx, "revoke", k, a, err)
}

// PrepareX509Authority makes and publishes the next authority.
func (s *localAuthorityService) PrepareX509Authority(ctx context.Context, _ *authorityv1.PrepareX509AuthorityRequest) (*authorityv1.PrepareX509AuthorityResponse, error) {
	a, err := s.prepare(ctx, ca.X509)
	return &authorityv1.PrepareX509AuthorityResponse{PreparedAuthority: a}, err
}

// PrepareJWTAuthority makes and publishes the next authority.
func (s *localAuthorityService) PrepareJWTAuthority(ctx context.Context, _ *authorityv1.PrepareJWTAuthorityRequest) (*authorityv1.PrepareJWTAuthorityResponse, error) {
	a, err := s.prepare(ctx, ca.JWT)
	return &authorityv1.PrepareJWTAuthorityResponse{PreparedAuthority: a}, err
}

// PrepareWITAuthority makes and publishes the next authority.
func (s *localAuthorityService) PrepareWITAuthority(ctx context.Context, _ *authorityv1.PrepareWITAuthorityRequest) (*authorityv1.PrepareWITAuthorityResponse, error) {
	a, err := s.prepare(ctx, ca.WIT)
	return &authorityv1.PrepareWITAuthorityResponse{PreparedAuthority: a}, err
}

// ActivateX509Authority signs with the prepared authority, once those who are connected know it.
func (s *localAuthorityService) ActivateX509Authority(ctx context.Context, req *authorityv1.ActivateX509AuthorityRequest) (*authorityv1.ActivateX509AuthorityResponse, error) {
	a, err := s.activate(ctx, ca.X509, req.AuthorityId)
	return &authorityv1.ActivateX509AuthorityResponse{ActivatedAuthority: a}, err
}

// ActivateJWTAuthority signs with the prepared authority, once those who are connected know it.
func (s *localAuthorityService) ActivateJWTAuthority(ctx context.Context, req *authorityv1.ActivateJWTAuthorityRequest) (*authorityv1.ActivateJWTAuthorityResponse, error) {
	a, err := s.activate(ctx, ca.JWT, req.AuthorityId)
	return &authorityv1.ActivateJWTAuthorityResponse{ActivatedAuthority: a}, err
}

// ActivateWITAuthority signs with the prepared authority, once those who are connected know it.
func (s *localAuthorityService) ActivateWITAuthority(ctx context.Context, req *authorityv1.ActivateWITAuthorityRequest) (*authorityv1.ActivateWITAuthorityResponse, error) {
	a, err := s.activate(ctx, ca.WIT, req.AuthorityId)
	return &authorityv1.ActivateWITAuthorityResponse{ActivatedAuthority: a}, err
}

// TaintX509Authority has all that the old authority signed replaced.
func (s *localAuthorityService) TaintX509Authority(ctx context.Context, req *authorityv1.TaintX509AuthorityRequest) (*authorityv1.TaintX509AuthorityResponse, error) {
	a, err := s.taint(ctx, ca.X509, req.AuthorityId)
	return &authorityv1.TaintX509AuthorityResponse{TaintedAuthority: a}, err
}

// TaintJWTAuthority has all that the old authority signed replaced.
func (s *localAuthorityService) TaintJWTAuthority(ctx context.Context, req *authorityv1.TaintJWTAuthorityRequest) (*authorityv1.TaintJWTAuthorityResponse, error) {
	a, err := s.taint(ctx, ca.JWT, req.AuthorityId)
	return &authorityv1.TaintJWTAuthorityResponse{TaintedAuthority: a}, err
}

// TaintWITAuthority has all that the old authority signed replaced.
func (s *localAuthorityService) TaintWITAuthority(ctx context.Context, req *authorityv1.TaintWITAuthorityRequest) (*authorityv1.TaintWITAuthorityResponse, error) {
	a, err := s.taint(ctx, ca.WIT, req.AuthorityId)
	return &authorityv1.TaintWITAuthorityResponse{TaintedAuthority: a}, err
}

// RevokeX509Authority takes a tainted authority out of the bundle.
func (s *localAuthorityService) RevokeX509Authority(ctx context.Context, req *authorityv1.RevokeX509AuthorityRequest) (*authorityv1.RevokeX509AuthorityResponse, error) {
	a, err := s.revoke(ctx, ca.X509, req.AuthorityId)
	return &authorityv1.RevokeX509AuthorityResponse{RevokedAuthority: a}, err
}

// RevokeJWTAuthority takes a tainted authority out of the bundle.
func (s *localAuthorityService) RevokeJWTAuthority(ctx context.Context, req *authorityv1.RevokeJWTAuthorityRequest) (*authorityv1.RevokeJWTAuthorityResponse, error) {
	a, err := s.revoke(ctx, ca.JWT, req.AuthorityId)
	return &authorityv1.RevokeJWTAuthorityResponse{RevokedAuthority: a}, err
}

// RevokeWITAuthority takes a tainted authority out of the bundle.
func (s *localAuthorityService) RevokeWITAuthority(ctx context.Context, req *authorityv1.RevokeWITAuthorityRequest) (*authorityv1.RevokeWITAuthorityResponse, error) {
	a, err := s.revoke(ctx, ca.WIT, req.AuthorityId)
	return &authorityv1.RevokeWITAuthorityResponse{RevokedAuthority: a}, err
}

// TaintX509UpstreamAuthority has all replaced that is below a root of the upstream authority.
func (s *localAuthorityService) TaintX509UpstreamAuthority(ctx context.Context, req *authorityv1.TaintX509UpstreamAuthorityRequest) (*authorityv1.TaintX509UpstreamAuthorityResponse, error) {
	if err := s.Authorities.TaintUpstream(ctx, req.SubjectKeyId); err != nil {
		return nil, wire.Error(fmt.Errorf("failed to taint upstream authority: %w", err))
	}
	gate.Log(ctx).Info("upstream authority tainted by an operator", "subject_key_id", req.SubjectKeyId)
	return &authorityv1.TaintX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: req.SubjectKeyId}, nil
}

// RevokeX509UpstreamAuthority takes a tainted root of the upstream authority out of the bundle.
func (s *localAuthorityService) RevokeX509UpstreamAuthority(ctx context.Context, req *authorityv1.RevokeX509UpstreamAuthorityRequest) (*authorityv1.RevokeX509UpstreamAuthorityResponse, error) {
	if err := s.Authorities.RevokeUpstream(ctx, req.SubjectKeyId); err != nil {
		return nil, wire.Error(fmt.Errorf("failed to revoke upstream authority: %w", err))
	}
	gate.Log(ctx).Info("upstream authority revoked by an operator", "subject_key_id", req.SubjectKeyId)
	return &authorityv1.RevokeX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: req.SubjectKeyId}, nil
}
