// SPDX-License-Identifier: Apache-2.0

package delegated

import (
	"context"
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	pb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
)

// SubscribeToX509SVIDs streams a workload's X.509-SVIDs. As at SPIRE, to have none is a message without any.
func (s *Server) SubscribeToX509SVIDs(req *pb.SubscribeToX509SVIDsRequest, st grpc.ServerStreamingServer[pb.SubscribeToX509SVIDsResponse]) error {
	w, err := s.open(st.Context(), req.Pid, req.Selectors)
	if err != nil {
		return err
	}
	return follow(st, w, func(ctx context.Context) (*pb.SubscribeToX509SVIDsResponse, []*svids.SVID, error) {
		entries := w.Entries()
		if len(entries) == 0 {
			return &pb.SubscribeToX509SVIDsResponse{}, nil, nil
		}
		list, err := w.X509(ctx, entries)
		if err != nil {
			return nil, nil, err
		}
		resp, err := x509Response(list, w.Bundles(entries)[1:], svids.Hints(entries))
		return resp, list, err
	})
}

func x509Response(list []*svids.SVID, federated []*trust.Bundle, hints map[string]string) (*pb.SubscribeToX509SVIDsResponse, error) {
	resp := &pb.SubscribeToX509SVIDsResponse{}
	for _, b := range federated {
		resp.FederatesWith = append(resp.FederatesWith, b.TrustDomain().IDString())
	}
	for _, v := range list {
		chain, err := x509.ParseCertificates(v.Chain)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "reading an SVID: %v", err)
		}
		svid := &types.X509SVID{Id: spiffeID(v.ID), ExpiresAt: v.NotAfter.Unix(), Hint: hints[v.EntryID]}
		for _, c := range chain {
			svid.CertChain = append(svid.CertChain, c.Raw)
		}
		resp.X509Svids = append(resp.X509Svids, &pb.X509SVIDWithKey{X509Svid: svid, X509SvidKey: v.Key})
	}
	return resp, nil
}

// SubscribeToX509Bundles streams all X.509 bundles that the agent has.
func (s *Server) SubscribeToX509Bundles(_ *pb.SubscribeToX509BundlesRequest, st grpc.ServerStreamingServer[pb.SubscribeToX509BundlesResponse]) error {
	w, err := s.itself(st.Context())
	if err != nil {
		return err
	}
	return follow(st, w, func(context.Context) (*pb.SubscribeToX509BundlesResponse, []*svids.SVID, error) {
		return &pb.SubscribeToX509BundlesResponse{CaCertificates: trust.ByTrustDomain(s.cfg.Bundles(), (*trust.Bundle).X509)}, nil, nil
	})
}

// FetchJWTSVIDs returns a workload's JWT-SVIDs for an audience.
func (s *Server) FetchJWTSVIDs(ctx context.Context, req *pb.FetchJWTSVIDsRequest) (*pb.FetchJWTSVIDsResponse, error) {
	audience, err := delivery.ReadAudience(req.Audience)
	if err != nil {
		return nil, err
	}
	w, err := s.open(ctx, req.Pid, req.Selectors)
	if err != nil {
		return nil, err
	}
	entries, err := w.Entitled(spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	list, err := w.JWT(ctx, entries, audience)
	if err != nil {
		return nil, err
	}
	hints, resp := svids.Hints(entries), &pb.FetchJWTSVIDsResponse{}
	for _, v := range list {
		resp.Svids = append(resp.Svids, &types.JWTSVID{Token: v.Token, Id: spiffeID(v.ID), ExpiresAt: v.NotAfter.Unix(), IssuedAt: v.NotBefore.Unix(), Hint: hints[v.EntryID]})
	}
	return delivery.Answer(ctx, w, resp, list)
}

// SubscribeToJWTBundles streams all JWT bundles that the agent has, as JWK Sets.
func (s *Server) SubscribeToJWTBundles(_ *pb.SubscribeToJWTBundlesRequest, st grpc.ServerStreamingServer[pb.SubscribeToJWTBundlesResponse]) error {
	w, err := s.itself(st.Context())
	if err != nil {
		return err
	}
	return follow(st, w, func(context.Context) (*pb.SubscribeToJWTBundlesResponse, []*svids.SVID, error) {
		return &pb.SubscribeToJWTBundlesResponse{Bundles: trust.ByTrustDomain(s.cfg.Bundles(), (*trust.Bundle).JWKS)}, nil, nil
	})
}

// message is a *M that is a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// follow sends the delegate what answer gives, and again whenever that changes.
func follow[M any, P message[M]](st grpc.ServerStreamingServer[M], w *delivery.Session, answer func(context.Context) (P, []*svids.SVID, error)) error {
	return delivery.Follow(st.Context(), w, delivery.Stream[P]{
		Offer: answer,
		Same:  func(a, b P) bool { return proto.Equal(a, b) },
		Send:  func(m P) error { return st.Send(m) },
	})
}

func spiffeID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}
