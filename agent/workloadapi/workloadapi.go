// SPDX-License-Identifier: Apache-2.0

// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API, sections 4 to 8)
// to the processes of this node, in all three profiles, one file for each. What it does for a
// caller is agent/delivery's; here are the standard's messages.
package workloadapi

import (
	"context"
	"strings"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
)

// Config is what New needs.
type Config struct {
	Desk *delivery.Desk
	// ForeignClaims are the claims of other trust domains' JWT-SVIDs that ValidateJWTSVID returns beside sub, aud and exp.
	ForeignClaims []string
}

// Server implements the service SpiffeWorkloadAPI.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	cfg Config
}

// New returns a Server; register it with Register.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Register adds the service to g.
func (s *Server) Register(g *grpc.Server) { pb.RegisterSpiffeWorkloadAPIServer(g, s) }

// Interceptors demand the security header on every call of the Workload API (SPIFFE Workload Endpoint, section 6:
// absent or wrong is InvalidArgument). The socket's other services have none: Envoy's SDS, health and reflection.
func Interceptors() []grpc.ServerOption {
	check := func(ctx context.Context, method string) error {
		if !strings.HasPrefix(method, "/"+pb.SpiffeWorkloadAPI_ServiceDesc.ServiceName+"/") {
			return nil
		}
		if v := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
			return status.Error(codes.InvalidArgument, "security header missing from request: send the metadata workload.spiffe.io: true")
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.ChainStreamInterceptor(func(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := check(st.Context(), info.FullMethod); err != nil {
				return err
			}
			return h(srv, st)
		}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
	}
}

// message is a *M that is a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// stream sends the caller what answer gives, and again whenever that changes.
func stream[M any, P message[M]](s *Server, st grpc.ServerStreamingServer[M], answer func(context.Context, *delivery.Session) (P, []*svids.SVID, error)) error {
	w, err := s.cfg.Desk.Enter(st.Context())
	if err != nil {
		return err
	}
	return delivery.Follow(st.Context(), w, delivery.Stream[P]{
		Offer: func(ctx context.Context) (P, []*svids.SVID, error) { return answer(ctx, w) },
		Same:  func(a, b P) bool { return proto.Equal(a, b) },
		Send:  func(m P) error { return st.Send(m) },
	})
}

// readID reads the SPIFFE ID that a request may name; the zero ID is all.
func readID(text string) (spiffeid.ID, error) {
	if text == "" {
		return spiffeid.ID{}, nil
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "invalid requested SPIFFE ID: %v", err)
	}
	return id, nil
}
