// SPDX-License-Identifier: Apache-2.0

// Package api is the server's face on the wire: SPIRE's server APIs, so that SPIRE's agents and
// tools work with this server, and our own Node service for agents that send evidence.
//
//	            TCP, TLS, client certificate optional      Unix socket, plain, mode 0770
//	caller      anyone, or the holder of an SVID            "local": whoever may open the socket
//	services    Agent Bundle Entry SVID Node NodeAdmin      the same, Debug, Health
//
// Who may call what is one table in auth.go. Messages become domain types only in convert.go.
package api

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"slices"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/policy"
)

// Entries is what the API needs of server/entries.
type Entries interface {
	Create(ctx context.Context, es []*selectors.Entry) []entries.Result
	Update(ctx context.Context, us []entries.Update) []entries.Result
	Delete(ctx context.Context, ids []string) []entries.Result
	Get(id string) *selectors.Entry
	BySPIFFEID(id spiffeid.ID) []*selectors.Entry
	List(f entries.Filter, pageSize int, token string) ([]*selectors.Entry, string, error)
	Count(f entries.Filter) int
	Authorized(agent spiffeid.ID, node selectors.Set) []*selectors.Entry
	AuthorizedEntry(agent spiffeid.ID, node selectors.Set, id string) *selectors.Entry
	Subscribe(agent spiffeid.ID, node func() selectors.Set) *entries.Feed
}

// Signer is what the API needs of server/ca.
type Signer interface {
	SignWorkload(req ca.Request) ([]*x509.Certificate, error)
	SignAgent(id spiffeid.ID, key crypto.PublicKey) ([]*x509.Certificate, error)
	Bundle() (ca.Bundle, <-chan struct{})
}

// Nodes is what the API needs of server/nodes.
type Nodes interface {
	Authorize(ctx context.Context, id spiffeid.ID, serial string, notAfter time.Time) error
	Attested(ctx context.Context, a nodes.Attestation, serial string, notAfter time.Time) (*nodes.Node, error)
	Renewable(ctx context.Context, id spiffeid.ID) error
	Renewed(ctx context.Context, id spiffeid.ID, serial string, notAfter time.Time) error
	Get(id spiffeid.ID) *nodes.Node
	List(f nodes.Filter, pageSize int, token string) ([]*nodes.Node, string, error)
	Count(f nodes.Filter) (int, error)
	Admissible(id spiffeid.ID) error
	Hold(ctx context.Context, a nodes.Attestation) error
	Approve(ctx context.Context, id spiffeid.ID, by string) error
	Suspend(ctx context.Context, id spiffeid.ID, reason, by string) error
	Readmit(ctx context.Context, id spiffeid.ID, by string) error
	Ban(ctx context.Context, id spiffeid.ID, reason, by string) error
	Delete(ctx context.Context, id spiffeid.ID) (*nodes.Node, error)
	SetVersion(ctx context.Context, id spiffeid.ID, version string) error
	CreateJoinToken(ctx context.Context, token string, ttl time.Duration) (time.Time, error)
}

// Inventory is what the API needs of server/nodes' inventory.
type Inventory interface {
	Get(ek selectors.Digest) *nodes.Device
	List() []*nodes.Device
	Add(ctx context.Context, devices []nodes.Device, by string) error
	Remove(ctx context.Context, eks []selectors.Digest) (int, error)
}

// Continuous asks admitted nodes again whether they are what they were.
type Continuous interface {
	// Run asks one node, by ask, until ctx ends (nil) or the node must go: a *nodes.DeniedError,
	// or another error, after which it attests again. spki is of the key behind the connection,
	// binding is the connection's.
	Run(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error
	// Fresh reports whether the node answered lately.
	Fresh(id spiffeid.ID) bool
	// Vouched returns what the agent's TPM vouched for of what it delivered, oldest first.
	Vouched(id spiffeid.ID) []nodes.Anchor
}

// Config of the API.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Entries     Entries
	Signer      Signer
	Nodes       Nodes
	Inventory   Inventory
	// Continuous attestation of nodes that have a TPM; nil asks none of them again.
	Continuous Continuous
	// Check judges a node by the rules of the named group, or of its own for "".
	Check func(n *nodes.Node, group string) ([]policy.Finding, error)
	// EKRoots are the CAs of TPM makers that attestors trust, to show.
	EKRoots []*x509.Certificate
	// Attestors by their type.
	Attestors []nodes.Attestor
	// AllowWithoutEvidence names the attestor types whose agents may have workload SVIDs
	// signed without evidence (SPIRE's agents send none).
	AllowWithoutEvidence []string
	// ServerSVID returns the server's present certificate, leaf first, with its key.
	ServerSVID func() (*tls.Certificate, error)
	Logger     *slog.Logger
	Now        func() time.Time
}

// Server serves the API.
type Server struct {
	cfg       Config
	attestors map[string]nodes.Attestor
	started   time.Time
	tcp, unix *grpc.Server
	health    *health.Server
	watchers  *watchers
}

const (
	maxConnectionAge = 3 * time.Minute  // so that clients spread over the servers
	pingEvery        = 30 * time.Second // finds agents that are gone
	pingTimeout      = 20 * time.Second
	minPing          = 10 * time.Second // faster pings of a client end its connection
	stopGrace        = 10 * time.Second
)

// New makes the API's servers; Serve runs them.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, attestors: map[string]nodes.Attestor{}, started: cfg.Now(), health: health.NewServer(), watchers: newWatchers()}
	for _, a := range cfg.Attestors {
		s.attestors[a.Type()] = a
	}
	guards := []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.guardUnary), grpc.ChainStreamInterceptor(s.guardStream)}
	s.unix = grpc.NewServer(append(slices.Clone(guards), grpc.Creds(socketCredentials{}))...)
	s.tcp = grpc.NewServer(append(guards,
		grpc.Creds(credentials.NewTLS(s.tlsConfig())),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxConnectionAge, Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		// The defaults hold 32 KiB more for each TLS connection; measured.
		grpc.WriteBufferSize(4096), grpc.ReadBufferSize(1024),
	)...)
	for _, g := range []*grpc.Server{s.unix, s.tcp} {
		agentv1.RegisterAgentServer(g, &agentService{Server: s})
		bundlev1.RegisterBundleServer(g, &bundleService{Server: s})
		entryv1.RegisterEntryServer(g, &entryService{Server: s})
		svidv1.RegisterSVIDServer(g, &svidService{Server: s})
		nodev1.RegisterNodeServer(g, &nodeService{Server: s})
		adminv1.RegisterNodeAdminServer(g, &nodeAdminService{Server: s})
	}
	debugv1.RegisterDebugServer(s.unix, &debugService{Server: s})
	healthv1.RegisterHealthServer(s.unix, s.health)
	return s
}

// Serve answers on both listeners until the context ends; running calls get 10 s to finish.
func (s *Server) Serve(ctx context.Context, tcp, unix net.Listener) error {
	ends := make(chan error, 2)
	go func() { ends <- s.unix.Serve(unix) }()
	go func() { ends <- s.tcp.Serve(tcp) }()
	running := 2
	var err error
	select {
	case <-ctx.Done():
	case err = <-ends:
		running--
	}
	s.health.Shutdown()
	s.watchers.stop()
	force := time.AfterFunc(stopGrace, func() { s.tcp.Stop(); s.unix.Stop() })
	defer force.Stop()
	s.tcp.GracefulStop()
	s.unix.GracefulStop()
	for ; running > 0; running-- {
		<-ends
	}
	return err
}

// SetHealth sets what grpc.health.v1.Health says about one part of the server. The server
// itself (the empty name) serves as long as it runs: it signs from memory without a store.
func (s *Server) SetHealth(part string, well bool) {
	st := healthv1.HealthCheckResponse_NOT_SERVING
	if well {
		st = healthv1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(part, st)
}
