// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"

	pb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
)

// SubscribeToX509SVID streams the workload's X.509-SVIDs (SPIFFE Broker API, section 5.2).
func (s *Server) SubscribeToX509SVID(req *pb.SubscribeToX509SVIDRequest, st grpc.ServerStreamingServer[pb.SubscribeToX509SVIDResponse]) error {
	return stream(s, st, req.Reference, func(ctx context.Context, w *delivery.Session) (*pb.SubscribeToX509SVIDResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		list, err := w.X509(ctx, entries)
		if err != nil {
			return nil, nil, err
		}
		bundles, hints := w.Bundles(entries), svids.Hints(entries)
		resp := &pb.SubscribeToX509SVIDResponse{Crl: bundles[0].CRLs(), FederatedBundles: trust.ByTrustDomain(bundles[1:], (*trust.Bundle).X509)}
		for _, v := range list {
			resp.Svids = append(resp.Svids, &pb.X509SVID{SpiffeId: v.ID.String(), X509Svid: v.Chain, X509SvidKey: v.Key, Bundle: bundles[0].X509(), Hint: hints[v.EntryID]})
		}
		return resp, list, nil
	})
}

// SubscribeToX509Bundles streams the workload's X.509 bundles, if it has an identity (section 5.3).
func (s *Server) SubscribeToX509Bundles(req *pb.SubscribeToX509BundlesRequest, st grpc.ServerStreamingServer[pb.SubscribeToX509BundlesResponse]) error {
	return stream(s, st, req.Reference, func(_ context.Context, w *delivery.Session) (*pb.SubscribeToX509BundlesResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		bundles := w.Bundles(entries)
		return &pb.SubscribeToX509BundlesResponse{Crl: bundles[0].CRLs(), Bundles: trust.ByTrustDomain(bundles, (*trust.Bundle).X509)}, nil, nil
	})
}

// FetchJWTSVID returns the workload's JWT-SVIDs for an audience, or that of one SPIFFE ID (section 6.2).
func (s *Server) FetchJWTSVID(ctx context.Context, req *pb.FetchJWTSVIDRequest) (*pb.FetchJWTSVIDResponse, error) {
	audience, err := delivery.ReadAudience(req.Audience)
	if err != nil {
		return nil, err
	}
	var id spiffeid.ID
	if req.SpiffeId != "" {
		if id, err = spiffeid.FromString(req.SpiffeId); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid requested SPIFFE ID: %v", err)
		}
	}
	w, err := s.open(ctx, req.Reference)
	if err != nil {
		return nil, err
	}
	resp, err := tokens(ctx, w, id, audience)
	return resp, explain(w, err)
}

func tokens(ctx context.Context, w *delivery.Session, id spiffeid.ID, audience []string) (*pb.FetchJWTSVIDResponse, error) {
	entries, err := w.Entitled(id)
	if err != nil {
		return nil, err
	}
	list, err := w.JWT(ctx, entries, audience)
	if err != nil {
		return nil, err
	}
	hints, resp := svids.Hints(entries), &pb.FetchJWTSVIDResponse{}
	for _, v := range list {
		resp.Svids = append(resp.Svids, &pb.JWTSVID{SpiffeId: v.ID.String(), Svid: v.Token, Hint: hints[v.EntryID]})
	}
	return delivery.Answer(ctx, w, resp, list)
}

// SubscribeToJWTBundles streams the workload's JWT bundles as JWK Sets, if it has an identity (section 6.3).
func (s *Server) SubscribeToJWTBundles(req *pb.SubscribeToJWTBundlesRequest, st grpc.ServerStreamingServer[pb.SubscribeToJWTBundlesResponse]) error {
	return stream(s, st, req.Reference, func(_ context.Context, w *delivery.Session) (*pb.SubscribeToJWTBundlesResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		return &pb.SubscribeToJWTBundlesResponse{Bundles: trust.ByTrustDomain(w.Bundles(entries), (*trust.Bundle).JWKS)}, nil, nil
	})
}

// message is a *M that is a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// stream sends the broker what answer gives for the workload, and again whenever that changes.
func stream[M any, P message[M]](s *Server, st grpc.ServerStreamingServer[M], ref *pb.WorkloadReference, answer func(context.Context, *delivery.Session) (P, []*svids.SVID, error)) error {
	w, err := s.open(st.Context(), ref)
	if err != nil {
		return err
	}
	return explain(w, delivery.Follow(st.Context(), w, delivery.Stream[P]{
		Offer: func(ctx context.Context) (P, []*svids.SVID, error) { return answer(ctx, w) },
		Same:  func(a, b P) bool { return proto.Equal(a, b) },
		Send:  func(m P) error { return st.Send(m) },
	}))
}
