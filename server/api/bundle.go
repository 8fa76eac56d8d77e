// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/api/wire"
)

// bundleService is spire.api.server.bundle.v1.Bundle. There is no federation yet, so no foreign
// bundle exists; see unsupported.
type bundleService struct {
	bundlev1.UnimplementedBundleServer
	*Server
}

// GetBundle returns the bundle of our trust domain to anyone.
func (s *bundleService) GetBundle(_ context.Context, req *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	b, _ := s.cfg.Signer.Bundle()
	if len(b.X509) == 0 {
		return nil, status.Error(codes.NotFound, "bundle not found")
	}
	return wire.Bundle(s.cfg.TrustDomain, b, req.OutputMask), nil
}

// CountBundles counts our own bundle and those of federated trust domains.
func (s *bundleService) CountBundles(context.Context, *bundlev1.CountBundlesRequest) (*bundlev1.CountBundlesResponse, error) {
	return &bundlev1.CountBundlesResponse{Count: 1}, nil
}

// GetFederatedBundle answers NotFound, which agents rely on: any other code ends their sync.
func (s *bundleService) GetFederatedBundle(_ context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(req.TrustDomain)
	switch {
	case err != nil:
		return nil, status.Errorf(codes.InvalidArgument, "trust domain argument is not valid: %v", err)
	case td == s.cfg.TrustDomain:
		return nil, status.Error(codes.InvalidArgument, "getting a federated bundle for the server's own trust domain is not allowed")
	}
	return nil, status.Error(codes.NotFound, "bundle not found")
}

// ListFederatedBundles is empty without federation.
func (s *bundleService) ListFederatedBundles(context.Context, *bundlev1.ListFederatedBundlesRequest) (*bundlev1.ListFederatedBundlesResponse, error) {
	return &bundlev1.ListFederatedBundlesResponse{}, nil
}
