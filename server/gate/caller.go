// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Caller is who makes a call.
type Caller struct {
	ID   spiffeid.ID       // zero without a certificate
	Cert *x509.Certificate // nil without

	local bool
	user  string // who opened the Unix socket
}

// Operator names the caller where records say who did something.
func (c Caller) Operator() string { return "operator " + c.name() }

func (c Caller) name() string {
	switch {
	case c.local:
		return c.user
	case c.Cert == nil:
		return "anonymous"
	}
	return c.ID.String()
}

type callerKey struct{}

// CallerOf returns the caller that the gate let through.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

func (g *Gate) guardUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	ctx, done := g.begin(ctx, info.FullMethod)
	defer func() { done(err) }()
	if ctx, err = g.admit(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	if err := g.limit(ctx, info.FullMethod, max(1, g.cfg.Weight(req))); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (g *Gate) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx, done := g.begin(stream.Context(), info.FullMethod)
	defer func() { done(err) }()
	if ctx, err = g.admit(ctx, info.FullMethod, nil); err != nil {
		return err
	}
	if err := g.limit(ctx, info.FullMethod, 1); err != nil {
		return err
	}
	return handle(srv, &guardedStream{stream, ctx})
}

type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (g *guardedStream) Context() context.Context { return g.ctx }

type logKey struct{}

// Log returns the logger of a call: each line names the call and who made it.
func Log(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(logKey{}).(*slog.Logger); ok {
		return log
	}
	return slog.New(slog.DiscardHandler)
}

// begin gives the call its logger, and at its end a line at debug level.
func (g *Gate) begin(ctx context.Context, method string) (context.Context, func(error)) {
	who := "unknown"
	c, err := identify(ctx)
	if err == nil {
		who = c.name()
	}
	log := g.cfg.Logger.With("request_id", rand.Text(), "caller", who)
	start := g.cfg.Now()
	return context.WithValue(ctx, logKey{}, log), func(err error) {
		log.Debug("call", "method", method, "code", status.Code(err), "duration", g.cfg.Now().Sub(start), "error", err)
	}
}

// admit identifies the caller, checks the table and asks the policy. req is nil for a stream.
func (g *Gate) admit(ctx context.Context, method string, req any) (context.Context, error) {
	c, err := identify(ctx)
	if err != nil {
		return nil, err
	}
	ctx, as, refusal := g.byTable(context.WithValue(ctx, callerKey{}, c), c, method)
	if status.Code(refusal) != codes.OK && status.Code(refusal) != codes.PermissionDenied {
		return nil, refusal
	}
	if err := g.ask(ctx, c, method, req, as, refusal); err != nil {
		return nil, err
	}
	return ctx, nil
}

// byTable checks the table, and returns as what the caller was let in: 0 for a role. The order is
// SPIRE's: anyone, local, admin, downstream, agent; roles come last.
func (g *Gate) byTable(ctx context.Context, c Caller, method string) (context.Context, access, error) {
	allowed := permissions[method]
	if allowed&anyone != 0 {
		return ctx, anyone, nil
	}
	if allowed&local != 0 && c.local {
		return ctx, local, nil
	}
	if as := allowed & g.roles(c); as != 0 {
		return ctx, as, nil
	}
	err := denied(method)
	if allowed&agent != 0 && !c.local && c.Cert != nil {
		if err = g.cfg.Admitted(ctx, c, err); err == nil {
			return ctx, agent, nil
		}
	}
	if scoped, ok := g.scoped(ctx, c, method); ok {
		return scoped, 0, nil
	}
	return ctx, 0, err
}

func denied(method string) error {
	return status.Error(codes.PermissionDenied, "authorization denied for method "+method)
}

// identify reads the caller off the connection. The handshake has verified the certificate.
func identify(ctx context.Context) (Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, status.Error(codes.Internal, "the connection has no peer")
	}
	if p.Addr.Network() == "unix" {
		user := "unknown"
		if u, ok := p.AuthInfo.(socketUser); ok {
			user = u.name
		}
		return Caller{local: true, user: user}, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Caller{}, status.Error(codes.Internal, "the connection has no TLS")
	}
	certs := info.State.PeerCertificates
	if len(certs) == 0 {
		return Caller{}, nil
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return Caller{}, status.Errorf(codes.Unauthenticated, "client certificate is not an X.509-SVID: %v", err)
	}
	return Caller{ID: id, Cert: certs[0]}, nil
}

// roles are what registration entries and the configuration grant to the caller's SPIFFE ID.
func (g *Gate) roles(c Caller) access {
	if c.Cert == nil {
		return 0
	}
	var r access
	isAdmin, isDownstream := g.cfg.Roles(c.ID)
	if isAdmin || slices.Contains(g.cfg.AdminIDs, c.ID) {
		r |= admin
	}
	if isDownstream {
		r |= downstream
	}
	if r != 0 && (g.cfg.Now().After(c.Cert.NotAfter) || g.cfg.Revoked(c.Cert)) {
		return 0 // the connection has outlived what the SVID says
	}
	return r
}

// ChannelBinding is the connection's own value (RFC 9266, tls-exporter), or nil where there is no
// such: on the Unix socket, and in TLS 1.2 without extended master secret.
func ChannelBinding(ctx context.Context) []byte {
	p, _ := peer.FromContext(ctx)
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		if b, err := info.State.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err == nil {
			return b
		}
	}
	return nil
}
