// SPDX-License-Identifier: Apache-2.0

// Package gate is the server's door: it listens, finds out who is calling and what he may call,
// and knows nothing of what the calls do.
//
//	            TCP, TLS, client certificate optional      Unix socket, plain, mode 0770
//	caller      anyone, or the holder of an SVID            "local": whoever may open the socket
//
// Who may call what is one table in table.go: by what the caller is, or by a role (role.go) that is
// bounded to some entries, nodes and bundles. An operator's policy (policy.go) may narrow the table, or take
// its place for operators' methods. limit.go holds back who calls too often.
package gate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Config of a gate. All of it is needed but for what may be empty.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// Authorities returns those that clients' SVIDs of a trust domain must be signed by, as of now;
	// of another trust domain than ours only who is an admin or has a role comes in.
	Authorities func(td spiffeid.TrustDomain) []*x509.Certificate
	// ServerSVID returns the server's present certificate, leaf first, with its key.
	ServerSVID func() (*tls.Certificate, error)
	// Roles tells what registration entries make of the holder of an SVID.
	Roles func(id spiffeid.ID) (admin, downstream bool)
	// AdminIDs are admins by configuration, also of other trust domains. May be empty.
	AdminIDs []spiffeid.ID
	// Scoped roles. May be empty.
	Scoped []*Role
	// Policy is an operator's. May be empty.
	Policy Policy
	// Limits of callers.
	Limits Limits
	// Weight is how many calls a message stands for, for limits; below 1 counts as 1.
	Weight func(req any) int
	// Admitted returns nil if c holds the active SVID of an admitted node, or else what to
	// answer; denied is what others are answered.
	Admitted func(ctx context.Context, c Caller, denied error) error
	// Revoked reports whether a client's certificate is; who holds it is then nobody in particular.
	Revoked func(cert *x509.Certificate) bool
	// Options of gRPC that come before the gate's own, for example to count calls. May be empty.
	Options []grpc.ServerOption
	// Stopping is called once, before the calls that are running get their time to finish.
	Stopping func()
	Logger   *slog.Logger
	Now      func() time.Time
}

// Gate guards the server's two listeners.
type Gate struct {
	cfg       Config
	limits    map[string]*buckets // by method
	capacity  capacity
	tcp, unix *grpc.Server
}

const (
	maxConnectionAge = 3 * time.Minute  // so that clients spread over the servers
	pingEvery        = 30 * time.Second // finds agents that are gone
	pingTimeout      = 20 * time.Second
	minPing          = 10 * time.Second // faster pings of a client end its connection
	handshakeTimeout = 20 * time.Second // and of clients of gRPC, too
	stopGrace        = 10 * time.Second
	maxFromOperators = 64 << 20 // bytes of one message: rules may come with lists of files
)

// New makes a gate before the services that register adds; Serve opens it.
func New(cfg Config, register func(tcp, unix grpc.ServiceRegistrar)) *Gate {
	g := &Gate{cfg: cfg, limits: limitsOf(cfg.Limits, cfg.Now), capacity: capacity{processors: runtime.GOMAXPROCS(0)}}
	guards := append(slices.Clip(cfg.Options), grpc.ForceServerCodecV2(newCodec()), grpc.ChainUnaryInterceptor(g.guardUnary), grpc.ChainStreamInterceptor(g.guardStream))
	g.unix = grpc.NewServer(append(slices.Clone(guards), grpc.Creds(socketCredentials{}), grpc.MaxRecvMsgSize(maxFromOperators))...)
	g.tcp = grpc.NewServer(append(guards,
		grpc.Creds(newHandshakes(credentials.NewTLS(g.tlsConfig()), runtime.GOMAXPROCS(0))), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxConnectionAge, Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		// TLS has a buffer of its own to read from. Those to write to are shared; thousands of streams
		// that are told the same at once need one each, which a bundle should fit into.
		grpc.ReadBufferSize(0), grpc.WriteBufferSize(8<<10),
	)...)
	register(g.tcp, g.unix)
	return g
}

// Serve answers on both listeners until the context ends; running calls get 10 s to finish.
func (g *Gate) Serve(ctx context.Context, tcp, unix net.Listener) error {
	ends := make(chan error, 2)
	go func() { ends <- g.unix.Serve(unix) }()
	go func() { ends <- g.tcp.Serve(tcp) }()
	running := 2
	var err error
	select {
	case <-ctx.Done():
	case err = <-ends:
		running--
	}
	g.cfg.Stopping()
	force := time.AfterFunc(stopGrace, func() { g.tcp.Stop(); g.unix.Stop() })
	defer force.Stop()
	g.tcp.GracefulStop()
	g.unix.GracefulStop()
	for ; running > 0; running-- {
		<-ends
	}
	return err
}
