// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/gate"
)

// bundleService is spire.api.server.bundle.v1.Bundle.
type bundleService struct {
	bundlev1.UnimplementedBundleServer
	*Services
}

// GetBundle returns the bundle of our trust domain to anyone.
func (s *bundleService) GetBundle(_ context.Context, req *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	b, _ := s.Authorities.Bundle()
	if len(b.X509) == 0 {
		return nil, status.Error(codes.NotFound, "bundle not found")
	}
	return wire.Bundle(s.TrustDomain, b, req.OutputMask), nil
}

// CountBundles counts our own bundle and those of federated trust domains.
func (s *bundleService) CountBundles(context.Context, *bundlev1.CountBundlesRequest) (*bundlev1.CountBundlesResponse, error) {
	return &bundlev1.CountBundlesResponse{Count: int32(1 + s.Federation.CountBundles())}, nil
}

// AppendBundle adds authorities of others to our bundle, for example when trust domains merge.
func (s *bundleService) AppendBundle(ctx context.Context, req *bundlev1.AppendBundleRequest) (*types.Bundle, error) {
	if len(req.WitAuthorities) > 0 {
		return nil, status.Error(codes.InvalidArgument, "WIT authorities can not be appended; a nested server publishes its own by PublishWITAuthority")
	}
	certs, err := wire.ReadX509Authorities(req.X509Authorities)
	if err != nil {
		return nil, err
	}
	keys, err := wire.ReadJWTKeys(req.JwtAuthorities)
	if err != nil {
		return nil, err
	}
	b, err := s.Authorities.Append(ctx, certs, keys)
	if err != nil {
		return nil, wire.Error(err)
	}
	gate.Log(ctx).Info("authorities appended to the bundle", "x509", len(certs), "jwt", len(keys), "sequence", b.Sequence)
	return wire.Bundle(s.TrustDomain, b, req.OutputMask), nil
}

// PublishJWTAuthority adds the key of a nested server and returns all.
func (s *bundleService) PublishJWTAuthority(ctx context.Context, req *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	if req.JwtAuthority == nil {
		return nil, status.Error(codes.InvalidArgument, "missing JWT authority")
	}
	keys, err := wire.ReadJWTKeys([]*types.JWTKey{req.JwtAuthority})
	if err != nil {
		return nil, err
	}
	all, err := s.Authorities.PublishJWT(ctx, keys[0])
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to publish JWT key: %w", err))
	}
	gate.Log(ctx).Info("JWT authority published", "authority_id", keys[0].ID, "expires_at", keys[0].ExpiresAt)
	return &bundlev1.PublishJWTAuthorityResponse{JwtAuthorities: wire.JWTKeys(all)}, nil
}

// PublishWITAuthority adds the key of a nested server and returns all.
func (s *bundleService) PublishWITAuthority(ctx context.Context, req *bundlev1.PublishWITAuthorityRequest) (*bundlev1.PublishWITAuthorityResponse, error) {
	if req.WitAuthority == nil {
		return nil, status.Error(codes.InvalidArgument, "missing WIT authority")
	}
	keys, err := wire.ReadWITKeys([]*types.WITKey{req.WitAuthority})
	if err != nil {
		return nil, err
	}
	all, err := s.Authorities.PublishWIT(ctx, keys[0])
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to publish WIT key: %w", err))
	}
	gate.Log(ctx).Info("WIT authority published", "authority_id", keys[0].ID, "expires_at", keys[0].ExpiresAt)
	return &bundlev1.PublishWITAuthorityResponse{WitAuthorities: wire.WITKeys(all)}, nil
}

// GetFederatedBundle answers NotFound for one that is not known, which agents rely on: any other
// code ends their sync.
func (s *bundleService) GetFederatedBundle(ctx context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	td, err := s.foreign(ctx, req.TrustDomain, "getting a federated bundle for the server's own trust domain is not allowed")
	if err != nil {
		return nil, err
	}
	b := s.Federation.Bundle(td)
	if b == nil {
		return nil, status.Error(codes.NotFound, "bundle not found")
	}
	return wire.FederatedBundle(b, req.OutputMask), nil
}

// foreign reads the name of another trust domain that the caller may ask about.
func (s *Services) foreign(ctx context.Context, text, own string) (spiffeid.TrustDomain, error) {
	td, err := wire.ReadTrustDomain(text)
	switch {
	case err != nil:
		return td, err
	case td == s.TrustDomain:
		return td, status.Error(codes.InvalidArgument, own)
	}
	return td, gate.ScopeOf(ctx).TrustDomain(td)
}

// ListFederatedBundles lists the bundles of other trust domains.
func (s *bundleService) ListFederatedBundles(ctx context.Context, req *bundlev1.ListFederatedBundlesRequest) (*bundlev1.ListFederatedBundlesResponse, error) {
	list, next, err := s.Federation.ListBundles(int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to list bundles: %w", err))
	}
	resp := &bundlev1.ListFederatedBundlesResponse{NextPageToken: next}
	for _, b := range list {
		if gate.ScopeOf(ctx).TrustDomain(b.TrustDomain) == nil {
			resp.Bundles = append(resp.Bundles, wire.FederatedBundle(b, req.OutputMask))
		}
	}
	return resp, nil
}

// BatchCreateFederatedBundle stores bundles that are not known yet.
func (s *bundleService) BatchCreateFederatedBundle(ctx context.Context, req *bundlev1.BatchCreateFederatedBundleRequest) (*bundlev1.BatchCreateFederatedBundleResponse, error) {
	resp := &bundlev1.BatchCreateFederatedBundleResponse{}
	s.store(ctx, "create", "creating a federated bundle for the server's own trust domain is not allowed", s.Federation.CreateBundles, req.Bundle, req.OutputMask, func(st *types.Status, b *types.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchCreateFederatedBundleResponse_Result{Status: st, Bundle: b})
	})
	return resp, nil
}

// BatchSetFederatedBundle stores bundles, whether they are known or not.
func (s *bundleService) BatchSetFederatedBundle(ctx context.Context, req *bundlev1.BatchSetFederatedBundleRequest) (*bundlev1.BatchSetFederatedBundleResponse, error) {
	resp := &bundlev1.BatchSetFederatedBundleResponse{}
	s.store(ctx, "set", "setting a federated bundle for the server's own trust domain is not allowed", s.Federation.SetBundles, req.Bundle, req.OutputMask, func(st *types.Status, b *types.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchSetFederatedBundleResponse_Result{Status: st, Bundle: b})
	})
	return resp, nil
}

// store creates or sets bundles.
func (s *bundleService) store(ctx context.Context, what, own string, put func(context.Context, []*federation.Bundle) []federation.Result[*federation.Bundle],
	ps []*types.Bundle, mask *types.BundleMask, result func(*types.Status, *types.Bundle)) {
	each(ps, what, "bundle", func(p *types.Bundle) (*federation.Bundle, error) {
		td, err := s.foreign(ctx, p.GetTrustDomain(), own)
		if err != nil {
			return nil, err
		}
		b := &federation.Bundle{TrustDomain: td}
		if err := wire.SetBundle(b, p, nil); err != nil {
			return nil, err
		}
		return s.stored(ctx, what, put(ctx, []*federation.Bundle{b})[0])
	}, func(st *types.Status, _ *types.Bundle, b *federation.Bundle) { result(st, masked(b, mask)) })
}

// stored notes what became of a bundle.
func (s *bundleService) stored(ctx context.Context, what string, r federation.Result[*federation.Bundle]) (*federation.Bundle, error) {
	if r.Err == nil {
		gate.Log(ctx).Info("federated bundle changed by an operator", "change", what, "federated_trust_domain", r.TrustDomain.Name(), "sequence", r.Value.Sequence)
	}
	return r.Value, r.Err
}

func masked(b *federation.Bundle, mask *types.BundleMask) *types.Bundle {
	if b == nil {
		return nil
	}
	return wire.FederatedBundle(b, mask)
}

// BatchUpdateFederatedBundle replaces the fields of the input mask in bundles that are known; all
// fields without one.
func (s *bundleService) BatchUpdateFederatedBundle(ctx context.Context, req *bundlev1.BatchUpdateFederatedBundleRequest) (*bundlev1.BatchUpdateFederatedBundleResponse, error) {
	resp := &bundlev1.BatchUpdateFederatedBundleResponse{}
	each(req.Bundle, "update", "bundle", func(p *types.Bundle) (*federation.Bundle, error) {
		td, err := s.foreign(ctx, p.GetTrustDomain(), "updating a federated bundle for the server's own trust domain is not allowed")
		if err != nil {
			return nil, err
		}
		change := func(b *federation.Bundle) error { return wire.SetBundle(b, p, req.InputMask) }
		return s.stored(ctx, "update", s.Federation.UpdateBundles(ctx, []federation.BundleUpdate{{TrustDomain: td, Change: change}})[0])
	}, func(st *types.Status, _ *types.Bundle, b *federation.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchUpdateFederatedBundleResponse_Result{Status: st, Bundle: masked(b, req.OutputMask)})
	})
	return resp, nil
}

// BatchDeleteFederatedBundle forgets bundles; the mode says what becomes of entries that federate.
func (s *bundleService) BatchDeleteFederatedBundle(ctx context.Context, req *bundlev1.BatchDeleteFederatedBundleRequest) (*bundlev1.BatchDeleteFederatedBundleResponse, error) {
	if _, known := bundlev1.BatchDeleteFederatedBundleRequest_Mode_name[int32(req.Mode)]; !known {
		return nil, status.Errorf(codes.InvalidArgument, "unhandled delete mode %d", req.Mode)
	}
	if scope := gate.ScopeOf(ctx); req.Mode != bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT && !scope.All() {
		return nil, status.Error(codes.PermissionDenied, "a role deletes no bundle that entries federate with; take it out of them, or ask an admin")
	}
	resp := &bundlev1.BatchDeleteFederatedBundleResponse{}
	each(req.TrustDomains, "delete federated", "bundle", func(name string) (*federation.Bundle, error) {
		td, err := s.foreign(ctx, name, "removing the bundle for the server trust domain is not allowed")
		if err != nil {
			return nil, err
		}
		return s.stored(ctx, "delete", s.Federation.DeleteBundles(ctx, []spiffeid.TrustDomain{td}, federation.DeleteMode(req.Mode))[0])
	}, func(st *types.Status, name string, _ *federation.Bundle) {
		resp.Results = append(resp.Results, &bundlev1.BatchDeleteFederatedBundleResponse_Result{Status: st, TrustDomain: name})
	})
	return resp, nil
}
