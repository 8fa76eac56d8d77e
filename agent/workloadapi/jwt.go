// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
)

// FetchJWTSVID returns the caller's JWT-SVIDs for an audience, or that of one SPIFFE ID (section 6.2.1).
func (s *Server) FetchJWTSVID(ctx context.Context, req *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	audience, err := delivery.ReadAudience(req.Audience)
	if err != nil {
		return nil, err
	}
	id, err := readID(req.SpiffeId)
	if err != nil {
		return nil, err
	}
	w, err := s.cfg.Desk.Enter(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := w.Entitled(id)
	if err != nil {
		return nil, err
	}
	list, err := w.JWT(ctx, entries, audience)
	if err != nil {
		return nil, err
	}
	hints, resp := svids.Hints(entries), &pb.JWTSVIDResponse{}
	for _, v := range list {
		resp.Svids = append(resp.Svids, &pb.JWTSVID{SpiffeId: v.ID.String(), Svid: v.Token, Hint: hints[v.EntryID]})
	}
	return delivery.Answer(ctx, w, resp, list)
}

// FetchJWTBundles streams the caller's JWT bundles as JWK Sets, if it has an identity (section 6.2.2).
func (s *Server) FetchJWTBundles(_ *pb.JWTBundlesRequest, st grpc.ServerStreamingServer[pb.JWTBundlesResponse]) error {
	return stream(s, st, func(_ context.Context, w *delivery.Session) (*pb.JWTBundlesResponse, []*svids.SVID, error) {
		entries, err := w.Entitled(spiffeid.ID{})
		if err != nil {
			return nil, nil, err
		}
		return &pb.JWTBundlesResponse{Bundles: trust.ByTrustDomain(w.Bundles(entries), (*trust.Bundle).JWKS)}, nil, nil
	})
}

// ValidateJWTSVID validates a JWT-SVID by the caller's bundles, if it has an identity (section 6.2.3).
func (s *Server) ValidateJWTSVID(ctx context.Context, req *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	switch {
	case req.Audience == "":
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	case req.Svid == "":
		return nil, status.Error(codes.InvalidArgument, "svid must be specified")
	}
	w, err := s.cfg.Desk.Enter(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := w.Entitled(spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	bundles, known := w.Bundles(entries), jwtbundle.NewSet()
	for _, b := range bundles {
		known.Add(b.JWT())
	}
	svid, err := jwtsvid.ParseAndValidate(req.Svid, known, []string{req.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(s.claims(svid, svid.ID.TrustDomain() != bundles[0].TrustDomain()))
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims of the token: %v", err)
	}
	return delivery.Answer(ctx, w, &pb.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil)
}

// claims are the token's, the audience always a list. What another trust domain's server may say beyond the
// claims of a JWT-SVID is for the operator to allow.
func (s *Server) claims(svid *jwtsvid.SVID, foreign bool) map[string]any {
	claims := maps.Clone(svid.Claims)
	if foreign {
		maps.DeleteFunc(claims, func(name string, _ any) bool {
			return name != "sub" && name != "exp" && !slices.Contains(s.cfg.ForeignClaims, name)
		})
	}
	audience := make([]any, len(svid.Audience))
	for i, a := range svid.Audience {
		audience[i] = a
	}
	claims["aud"] = audience
	return claims
}
