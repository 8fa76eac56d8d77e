// SPDX-License-Identifier: Apache-2.0

// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API, sections 4 to 6)
// to the processes of this node.
//
// A stream lives through the steps of ARCHITECTURE.md "How one identity is issued": attest
// the caller once, subscribe, then for every message match, sign or take from the cache,
// check that the caller is still the one who was attested, and send. It ends when the caller
// changes or loses its entries.
//
// Served are the X.509 profile's FetchX509SVID and FetchX509Bundles. The JWT profile answers
// Unimplemented, as the standard allows an implementation that does not support it (section 6).
package workloadapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/selectors"
)

// Workload is one attested caller (agent/attest).
type Workload interface {
	Facts() *selectors.Facts
	Selectors() selectors.Set
	// Check returns an error once the caller is no longer the process that was attested,
	// alone on its connection.
	Check() error
	// Changed returns a channel that is closed when something happens to the caller from now on:
	// Check tells whether it still counts.
	Changed() <-chan struct{}
	// Done is closed when the caller has exited.
	Done() <-chan struct{}
}

// Attestor attests the process behind a request.
type Attestor func(ctx context.Context) (Workload, error)

// SVIDs are the node's SVIDs (agent/svids).
type SVIDs interface {
	Ready() <-chan struct{}
	X509(ctx context.Context, facts *selectors.Facts, set selectors.Set) ([]*svids.SVID, error)
	Match(set selectors.Set) []*selectors.Entry
	Nearest(set selectors.Set, n int) []selectors.Near
	Subscribe(set selectors.Set) *svids.Subscription
	TrustBundle() *spiffebundle.Bundle
}

// History keeps who received what (agent/history).
type History interface{ Record(...history.Delivery) }

// Server implements the service SpiffeWorkloadAPI.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	attest  Attestor
	svids   SVIDs
	history History
	log     *slog.Logger
	now     func() time.Time
}

// New returns a Server; register it with Register.
func New(attest Attestor, svids SVIDs, history History, log *slog.Logger, now func() time.Time) *Server {
	return &Server{attest: attest, svids: svids, history: history, log: log, now: now}
}

// Register adds the service to g.
func (s *Server) Register(g grpc.ServiceRegistrar) { pb.RegisterSpiffeWorkloadAPIServer(g, s) }

// Interceptors demand the security header on every call of the Workload API (SPIFFE Workload
// Endpoint, section 6: absent or wrong is InvalidArgument).
func Interceptors() []grpc.ServerOption {
	check := func(ctx context.Context) error {
		if v := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
			return status.Error(codes.InvalidArgument, "security header missing from request: send the metadata workload.spiffe.io: true")
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.StreamInterceptor(func(srv any, st grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := check(st.Context()); err != nil {
				return err
			}
			return h(srv, st)
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := check(ctx); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
	}
}

// FetchX509SVID streams the caller's X.509-SVIDs (section 5.2.1).
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, st grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	return stream(s, st, func(ctx context.Context, w Workload) (*pb.X509SVIDResponse, []*svids.SVID, error) {
		list, err := s.svids.X509(ctx, w.Facts(), w.Selectors())
		if len(list) == 0 {
			return nil, nil, s.none(w, err)
		}
		if err != nil {
			s.log.Warn("some identities of a workload could not be issued", "pid", w.Facts().Process.TGID, "error", err)
		}
		bundle := authorities(s.svids.TrustBundle())
		resp := &pb.X509SVIDResponse{}
		for _, v := range list {
			resp.Svids = append(resp.Svids, &pb.X509SVID{SpiffeId: v.ID.String(), X509Svid: v.Chain, X509SvidKey: v.Key, Bundle: bundle, Hint: v.Hint})
		}
		return resp, list, nil
	})
}

// FetchX509Bundles streams the trust bundle to callers that have an identity (section 5.2.2).
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, st grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	return stream(s, st, func(_ context.Context, w Workload) (*pb.X509BundlesResponse, []*svids.SVID, error) {
		if len(s.svids.Match(w.Selectors())) == 0 {
			return nil, nil, s.none(w, nil)
		}
		b := s.svids.TrustBundle()
		return &pb.X509BundlesResponse{Bundles: map[string][]byte{b.TrustDomain().IDString(): authorities(b)}}, nil, nil
	})
}

// none is the answer to a caller without any identity: PermissionDenied when that is a
// verdict (section 5.2.1), Unavailable when the server could not be asked.
func (s *Server) none(w Workload, err error) error {
	var verdict interface{ Refused() bool }
	if err != nil && !errors.As(err, &verdict) {
		s.log.Warn("no identity could be issued", "pid", w.Facts().Process.TGID, "error", err)
		return status.Error(codes.Unavailable, "the identity can not be issued now, try again")
	}
	attrs := []any{"pid", w.Facts().Process.TGID, "path", w.Facts().Executable.Path}
	for _, near := range s.svids.Nearest(w.Selectors(), 1) {
		attrs = append(attrs, "nearest", near.Entry.SPIFFEID, "lacks", near.Missing.String())
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	s.log.Info("no identity issued", attrs...)
	return status.Error(codes.PermissionDenied, "no identity issued")
}

// authorities are the bundle's X.509 authorities as concatenated DER.
func authorities(b *spiffebundle.Bundle) []byte {
	var buf bytes.Buffer
	for _, a := range b.X509Authorities() {
		buf.Write(a.Raw)
	}
	return buf.Bytes()
}
