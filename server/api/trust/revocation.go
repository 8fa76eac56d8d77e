// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	revocationv1 "github.com/assay-id/assay/proto/revocation"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/revocation"
)

// Revocations is what the services need of server/revocation.
type Revocations interface {
	Revoke(ctx context.Context, req revocation.Request) (revocation.Outcome, error)
	RevokeCertificate(ctx context.Context, cert *x509.Certificate, req revocation.Request) (revocation.Outcome, error)
	List() []revocation.Item
	CRLs() (map[string][]byte, <-chan struct{})
}

// revocationService is our own assay.revocation.v1.Revocation.
type revocationService struct {
	revocationv1.UnimplementedRevocationServer
	*Services
}

const maxWhy = 500 // bytes

// Revoke revokes what fits, or one certificate.
func (s *revocationService) Revoke(ctx context.Context, req *revocationv1.RevokeRequest) (*revocationv1.RevokeResponse, error) {
	if len(req.Why) > maxWhy {
		return nil, status.Errorf(codes.InvalidArgument, "the reason is longer than %d bytes", maxWhy)
	}
	r := revocation.Request{
		Scope:  revocation.Scope{Authority: req.AuthorityId, Serial: req.Serial, SPIFFEID: req.SpiffeId, Node: req.NodeId, Entry: req.EntryId},
		Reason: int(req.Reason), Why: req.Why, By: gate.CallerOf(ctx).Operator(),
	}
	if req.Sha256 != "" {
		if err := r.Scope.SHA256.UnmarshalText([]byte(req.Sha256)); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "sha256: %v", err)
		}
	}
	var out revocation.Outcome
	var err error
	if len(req.Certificates) == 0 {
		out, err = s.Revocations.Revoke(ctx, r)
	} else if (r.Scope != revocation.Scope{}) {
		return nil, status.Error(codes.InvalidArgument, "a certificate says all: leave serial number, SPIFFE ID, entry, node and digest out")
	} else if leaf, bad := s.ours(req.Certificates); bad != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the certificate: %v", bad)
	} else {
		out, err = s.Revocations.RevokeCertificate(ctx, leaf, r)
	}
	if err != nil {
		return nil, wire.RevocationError(err)
	}
	gate.Log(ctx).Warn("SVIDs revoked", "scope", r.Scope, "revoked", out.Revoked, "waiting_for", out.Waiting, "failed", out.Failed, "by", r.By)
	return &revocationv1.RevokeResponse{Revoked: int32(out.Revoked), Waiting: out.Waiting, Failed: out.Failed}, nil
}

// ours returns the leaf of a chain that one of our authorities vouches for, as of the leaf's beginning.
func (s *revocationService) ours(chain [][]byte) (*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	b, _ := s.Authorities.Bundle()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range b.Roots() {
		roots.AddCert(root)
	}
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	leaf := certs[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: leaf.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("it is not of an authority in our trust bundle; with an upstream authority give the whole chain: %w", err)
	}
	return leaf, nil
}

// ListRevoked returns what is revoked now.
func (s *revocationService) ListRevoked(context.Context, *revocationv1.ListRevokedRequest) (*revocationv1.ListRevokedResponse, error) {
	resp := &revocationv1.ListRevokedResponse{}
	for _, i := range s.Revocations.List() {
		resp.Revoked = append(resp.Revoked, wire.Revoked(i))
	}
	return resp, nil
}

// ListCRLs returns the present lists.
func (s *revocationService) ListCRLs(context.Context, *revocationv1.ListCRLsRequest) (*revocationv1.ListCRLsResponse, error) {
	all, _ := s.Revocations.CRLs()
	resp := &revocationv1.ListCRLsResponse{}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		resp.Crls = append(resp.Crls, &revocationv1.CRL{AuthorityId: id, Der: all[id]})
	}
	return resp, nil
}
