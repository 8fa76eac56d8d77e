// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
)

// FetchX509SVID streams the caller's X.509-SVIDs (section 5.2.1).
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, st grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	return stream(s, st, func(ctx context.Context, w *delivery.Session) (*pb.X509SVIDResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		list, err := w.X509(ctx, entries)
		if err != nil {
			return nil, nil, err
		}
		bundles, hints := w.Bundles(entries), svids.Hints(entries)
		resp := &pb.X509SVIDResponse{Crl: bundles[0].CRLs(), FederatedBundles: trust.ByTrustDomain(bundles[1:], (*trust.Bundle).X509)}
		for _, v := range list {
			resp.Svids = append(resp.Svids, &pb.X509SVID{SpiffeId: v.ID.String(), X509Svid: v.Chain, X509SvidKey: v.Key, Bundle: bundles[0].X509(), Hint: hints[v.EntryID]})
		}
		return resp, list, nil
	})
}

// FetchX509Bundles streams the caller's X.509 bundles, if it has an identity (section 5.2.2).
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, st grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	return stream(s, st, func(_ context.Context, w *delivery.Session) (*pb.X509BundlesResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		return &pb.X509BundlesResponse{Bundles: trust.ByTrustDomain(w.Bundles(entries), (*trust.Bundle).X509)}, nil, nil
	})
}
