// SPDX-License-Identifier: Apache-2.0

// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API, sections 4 to 8)
// to the processes of this node, in all three profiles, one file for each.
//
// A stream lives through the steps of ARCHITECTURE.md "How one identity is issued": attest
// the caller once, subscribe, then for every message match, sign or take from the cache,
// check that the caller is still the one who was attested, and send. It ends when the caller
// changes or loses its entries. A unary call is one such step.
package workloadapi

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
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

// SVIDs are the node's SVIDs (agent/svids). Errors of the three that sign may have the methods
// Refused() bool, a verdict, and Unsupported() bool, this server never does that.
type SVIDs interface {
	Ready() <-chan struct{}
	Match(set selectors.Set) []*selectors.Entry
	Nearest(set selectors.Set, n int) []selectors.Near
	X509(ctx context.Context, c svids.Caller, entries []*selectors.Entry) ([]*svids.SVID, error)
	JWT(ctx context.Context, c svids.Caller, entries []*selectors.Entry, audience []string) ([]*svids.SVID, error)
	WIT(ctx context.Context, c svids.Caller, entries []*selectors.Entry) ([]*svids.SVID, error)
	// Bundles returns our trust domain's, and after it those that the entries federate with.
	Bundles(entries []*selectors.Entry) []*trust.Bundle
	Subscribe(set selectors.Set) *svids.Subscription
}

// History keeps who received what (agent/history).
type History interface{ Record(...history.Delivery) }

// Config is what New needs.
type Config struct {
	Attest  Attestor
	SVIDs   SVIDs
	History History
	// ForeignClaims are the claims of other trust domains' JWT-SVIDs that ValidateJWTSVID returns beside sub, aud and exp.
	ForeignClaims []string
	Logger        *slog.Logger
	Now           func() time.Time
}

// Server implements the service SpiffeWorkloadAPI.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	cfg Config
}

// New returns a Server; register it with Register.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Interceptors demand the security header on every call (SPIFFE Workload Endpoint, section 6: absent or wrong
// is InvalidArgument). Health and reflection go without, as in SPIRE's agent: they tell no secrets.
func Interceptors() []grpc.ServerOption {
	check := func(ctx context.Context, method string) error {
		if strings.HasPrefix(method, "/grpc.health.") || strings.HasPrefix(method, "/grpc.reflection.") {
			return nil
		}
		if v := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
			return status.Error(codes.InvalidArgument, "security header missing from request: send the metadata workload.spiffe.io: true")
		}
		return nil
	}
	return []grpc.ServerOption{
		grpc.StreamInterceptor(func(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := check(st.Context(), info.FullMethod); err != nil {
				return err
			}
			return h(srv, st)
		}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
	}
}

// enter attests the caller and waits until there is something to answer.
func (s *Server) enter(ctx context.Context) (Workload, error) {
	w, err := s.cfg.Attest(ctx)
	if err != nil {
		return nil, s.refuse(ctx, err)
	}
	return w, s.wait(ctx)
}

// entitled returns the caller's entries, for one SPIFFE ID if that is not zero. It is PermissionDenied to have none.
func (s *Server) entitled(w Workload, id spiffeid.ID) ([]*selectors.Entry, error) {
	entries := s.cfg.SVIDs.Match(w.Selectors())
	if !id.IsZero() {
		entries = slices.DeleteFunc(entries, func(e *selectors.Entry) bool { return e.SPIFFEID != id })
	}
	if len(entries) == 0 {
		return nil, s.none(w, nil)
	}
	return entries, nil
}

// issued is the answer to a call for SVIDs without any, else nil; what is missing is logged.
func (s *Server) issued(w Workload, list []*svids.SVID, err error) error {
	if len(list) == 0 {
		return s.none(w, err)
	}
	if err != nil {
		s.cfg.Logger.Warn("some identities of a workload could not be issued", "pid", w.Facts().Process.TGID, "error", err)
	}
	return nil
}

// none is the answer to a caller without any identity: PermissionDenied when that is a
// verdict (section 5.2.1), Unavailable when the server could not be asked, Unimplemented when it signs none.
func (s *Server) none(w Workload, err error) error {
	var verdict interface{ Refused() bool }
	var unsupported interface{ Unsupported() bool }
	switch {
	case errors.As(err, &unsupported):
		return status.Error(codes.Unimplemented, "the server does not issue this kind of identity")
	case err != nil && !errors.As(err, &verdict):
		s.cfg.Logger.Warn("no identity could be issued", "pid", w.Facts().Process.TGID, "error", err)
		return status.Error(codes.Unavailable, "the identity can not be issued now, try again")
	}
	attrs := []any{"pid", w.Facts().Process.TGID, "path", w.Facts().Executable.Path}
	for _, near := range s.cfg.SVIDs.Nearest(w.Selectors(), 1) {
		attrs = append(attrs, "nearest", near.Entry.SPIFFEID, "lacks", near.Missing.String())
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	s.cfg.Logger.Info("no identity issued", attrs...)
	return status.Error(codes.PermissionDenied, "no identity issued")
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

// byTrustDomain returns a form of each bundle by the SPIFFE ID of its trust domain.
func byTrustDomain[V any](bundles []*trust.Bundle, form func(*trust.Bundle) V) map[string]V {
	out := make(map[string]V, len(bundles))
	for _, b := range bundles {
		out[b.TrustDomain().IDString()] = form(b)
	}
	return out
}
