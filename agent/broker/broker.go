// SPDX-License-Identifier: Apache-2.0

// Package broker serves the SPIFFE Broker API (SPIFFE Broker Endpoint and SPIFFE Broker API, both incubating): a
// broker, such as a node's proxy, asks for the identities of a workload that it names by a reference.
//
//	mTLS: the broker's X509-SVID, by our bundles ──▶ allow-list ──▶ reference ──▶ process pinned, attested
//	──▶ agent/delivery, where each message is preceded by: the broker's SVID still verifies, the process is
//	who it was
//
// The endpoint's own certificate is the node's SVID, as at SPIRE's agent.
package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/trust"
)

// Config is what New needs.
type Config struct {
	Desk *delivery.Desk
	// Process attests the process with a number, for as long as ctx lasts (attest.Attestor.Process): process.ErrGone if there
	// is none.
	Process func(ctx context.Context, pid int) (delivery.Workload, error)
	// Identity is the node's.
	Identity x509svid.Source
	// Bundle returns a trust domain's bundle, nil if the agent has none.
	Bundle func(spiffeid.TrustDomain) *trust.Bundle
	// Brokers are those who may ask, of whatever trust domain.
	Brokers map[spiffeid.ID]Rights
	Logger  *slog.Logger
}

// Rights are what one broker may use.
type Rights struct {
	// References are names of types of references; see References.
	References []string
	// OverTCP: not over the Unix socket only.
	OverTCP bool
}

// Server implements the service spiffe.broker.API.
type Server struct {
	pb.UnimplementedAPIServer
	cfg Config
}

// New returns a Server; make its gRPC server with GRPC.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

const (
	// handshake is how long a connection may take until it can ask.
	handshake = 20 * time.Second
	// streamsPerConnection is what HTTP/2 allows a connection at a time: a node's proxy has one for each workload.
	streamsPerConnection = 4096
)

// GRPC returns a gRPC server with the API and reflection (SPIFFE Broker Endpoint, section 7), for Unix and TCP listeners.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(s.tls())), grpc.ConnectionTimeout(handshake), grpc.MaxConcurrentStreams(streamsPerConnection),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if _, err := s.enter(ctx); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if _, err := s.enter(st.Context()); err != nil {
				return err
			}
			return h(srv, st)
		}))
	pb.RegisterAPIServer(g, s)
	reflection.Register(g)
	return g
}

// tls demands a certificate that is an X509-SVID by a bundle that we have. Whether it is a broker's is said in words, by enter.
func (s *Server) tls() *tls.Config {
	conf := tlsconfig.MTLSServerConfig(s.cfg.Identity, s, tlsconfig.AuthorizeAny())
	conf.SessionTicketsDisabled = true // each connection is verified
	return conf
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Server) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b := s.cfg.Bundle(td); b != nil {
		return b.X509Bundle(), nil
	}
	return nil, fmt.Errorf("the agent has no bundle of %s: an entry of this node has to federate with it", td)
}

// client is a broker at work.
type client struct {
	id     spiffeid.ID
	rights Rights
	chain  []*x509.Certificate
	tcp    bool
}

// enter finds out who asks: every call needs the security header (SPIFFE Broker Endpoint, section 6) and a broker.
func (s *Server) enter(ctx context.Context) (*client, error) {
	if v := metadata.ValueFromIncomingContext(ctx, "broker.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return nil, status.Error(codes.InvalidArgument, "security header missing from request: send the metadata broker.spiffe.io: true")
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "the request came over no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, status.Error(codes.Unauthenticated, "the request came without an X509-SVID")
	}
	c := &client{chain: info.State.PeerCertificates}
	if err := s.verify(c); err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "%v", err)
	}
	if c.rights, ok = s.cfg.Brokers[c.id]; !ok {
		s.cfg.Logger.Warn("somebody who is no broker was refused", "spiffe_id", c.id)
		return nil, status.Errorf(codes.PermissionDenied, "%s is no broker here: an operator can write it into the agent's block broker", c.id)
	}
	_, c.tcp = p.Addr.(*net.TCPAddr)
	return c, nil
}

var errRevoked = errors.New("the broker's certificate is revoked")

// verify holds the broker's certificates against our bundles as they are now.
func (s *Server) verify(c *client) error {
	id, _, err := x509svid.Verify(c.chain, s)
	if err != nil {
		return fmt.Errorf("the broker's SVID can not be verified any more: %w", err)
	}
	if b := s.cfg.Bundle(id.TrustDomain()); b != nil && b.Revokes(c.chain) {
		return errRevoked
	}
	c.id = id
	return nil
}
