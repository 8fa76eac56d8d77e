// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// FetchWITSVID streams the caller's WIT-SVIDs with their keys, or that of one SPIFFE ID (section 7.2.1).
func (s *Server) FetchWITSVID(req *pb.WITSVIDRequest, st grpc.ServerStreamingServer[pb.WITSVIDResponse]) error {
	id, err := readID(req.SpiffeId)
	if err != nil {
		return err
	}
	return stream(s, st, func(ctx context.Context, w *delivery.Session) (*pb.WITSVIDResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(id)
		if err != nil {
			return nil, nil, err
		}
		if _, err := witBundles(w, entries); err != nil {
			return nil, nil, err
		}
		list, err := w.WIT(ctx, entries)
		if err != nil {
			return nil, nil, err
		}
		hints, resp := svids.Hints(entries), &pb.WITSVIDResponse{}
		for _, v := range list {
			resp.Svids = append(resp.Svids, &pb.WITSVID{SpiffeId: v.ID.String(), WitSvid: v.Token, WitSvidKey: string(v.Key), Hint: hints[v.EntryID]})
		}
		return resp, list, nil
	})
}

// FetchWITBundles streams the caller's WIT bundles as JWK Sets, if it has an identity (section 7.2.2).
func (s *Server) FetchWITBundles(_ *pb.WITBundlesRequest, st grpc.ServerStreamingServer[pb.WITBundlesResponse]) error {
	return stream(s, st, func(_ context.Context, w *delivery.Session) (*pb.WITBundlesResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		bundles, err := witBundles(w, entries)
		if err != nil {
			return nil, nil, err
		}
		return &pb.WITBundlesResponse{Bundles: trust.ByTrustDomain(bundles, func(b *trust.Bundle) string { return string(b.WITKeys()) })}, nil, nil
	})
}

// witBundles is Unimplemented where the trust domain's servers have no WIT authorities (section 7).
func witBundles(w *delivery.Session, entries []*selectors.Entry) ([]*trust.Bundle, error) {
	bundles := w.Bundles(entries)
	if !bundles[0].HasWIT() {
		return nil, status.Error(codes.Unimplemented, "the trust domain has no WIT authorities")
	}
	return bundles, nil
}
