// SPDX-License-Identifier: Apache-2.0

// Package trust serves SPIRE's services about whom to trust: Bundle (our trust bundle and those of
// other trust domains), TrustDomain (where the others' come from) and LocalAuthority (the keys that
// this server signs with); and our own Revocation. One file is one service.
package trust

import (
	"context"
	"crypto/x509"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	revocationv1 "github.com/assay-id/assay/proto/revocation"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/federation"
)

// Authorities is what the services need of server/ca.
type Authorities interface {
	Bundle() (ca.Bundle, <-chan struct{})
	Append(ctx context.Context, x509 []*x509.Certificate, jwt []ca.KeyAuthority) (ca.Bundle, error)
	PublishJWT(ctx context.Context, a ca.KeyAuthority) ([]ca.KeyAuthority, error)
	PublishWIT(ctx context.Context, a ca.KeyAuthority) ([]ca.KeyAuthority, error)
	State(k ca.Kind) (ca.State, error)
	Prepare(ctx context.Context, k ca.Kind) (ca.Authority, error)
	Activate(ctx context.Context, k ca.Kind, id string) (ca.Authority, error)
	Taint(ctx context.Context, k ca.Kind, id string) (ca.Authority, error)
	Revoke(ctx context.Context, k ca.Kind, id string) (ca.Authority, error)
	TaintUpstream(ctx context.Context, ski string) error
	RevokeUpstream(ctx context.Context, ski string) error
}

// Federation is what the services need of server/federation.
type Federation interface {
	Bundle(td spiffeid.TrustDomain) *federation.Bundle
	CountBundles() int
	ListBundles(pageSize int, token string) ([]*federation.Bundle, string, error)
	CreateBundles(ctx context.Context, bs []*federation.Bundle) []federation.Result[*federation.Bundle]
	SetBundles(ctx context.Context, bs []*federation.Bundle) []federation.Result[*federation.Bundle]
	UpdateBundles(ctx context.Context, us []federation.BundleUpdate) []federation.Result[*federation.Bundle]
	DeleteBundles(ctx context.Context, tds []spiffeid.TrustDomain, mode federation.DeleteMode) []federation.Result[*federation.Bundle]
	Relationship(td spiffeid.TrustDomain) (federation.Relationship, bool)
	ListRelationships(pageSize int, token string) ([]federation.Relationship, string, error)
	CreateRelationships(ctx context.Context, ns []federation.NewRelationship) []federation.Result[federation.Relationship]
	UpdateRelationships(ctx context.Context, us []federation.RelationshipUpdate) []federation.Result[federation.Relationship]
	DeleteRelationships(ctx context.Context, tds []spiffeid.TrustDomain) []federation.Result[federation.Relationship]
	RefreshBundle(ctx context.Context, td spiffeid.TrustDomain) error
}

// Services are the four. All fields are needed.
type Services struct {
	TrustDomain spiffeid.TrustDomain
	Authorities Authorities
	Federation  Federation
	Revocations Revocations
}

// Register adds them to a gRPC server.
func (s *Services) Register(g grpc.ServiceRegistrar) {
	bundlev1.RegisterBundleServer(g, &bundleService{Services: s})
	trustdomainv1.RegisterTrustDomainServer(g, &trustDomainService{Services: s})
	authorityv1.RegisterLocalAuthorityServer(g, &localAuthorityService{Services: s})
	revocationv1.RegisterRevocationServer(g, &revocationService{Services: s})
}

// each does something for each item of a batch, on its own merits, and words the outcome with
// "create" or such and "bundle" or such.
func each[I, R any](items []I, verb, noun string, do func(I) (R, error), result func(*types.Status, I, R)) {
	for _, item := range items {
		r, err := do(item)
		switch {
		case errors.Is(err, federation.ErrExists):
			err = status.Errorf(codes.AlreadyExists, "%s already exists", noun)
		case errors.Is(err, federation.ErrNotFound):
			err = status.Errorf(codes.NotFound, "%s not found", noun)
		case err != nil:
			err = wire.ErrorTo(verb+" "+noun, err)
		}
		result(wire.ItemStatus(err), item, r)
	}
}
