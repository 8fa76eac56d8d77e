// SPDX-License-Identifier: Apache-2.0

// Package api is what the server does for those who call it: SPIRE's server APIs, so that SPIRE's
// agents and tools work with this server, and our own Node and NodeAdmin. One file is one service:
//
//	on both listeners      Agent SVID Node                     here
//	                       Entry                               entry
//	                       Bundle TrustDomain LocalAuthority   trust
//	                       Revocation                          trust
//	                       NodeAdmin                           operate
//	on the Unix socket     Debug Logger                        operate
//	                       Health                              here
//
// server/gate has found out who is calling and that he may; api/wire translates the messages.
package api

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/entry"
	"github.com/assay-id/assay/server/api/operate"
	"github.com/assay-id/assay/server/api/trust"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
)

// Entries is what the API needs of server/entries.
type Entries interface {
	entry.Entries
	BySPIFFEID(id spiffeid.ID) []*selectors.Entry
	AuthorizedEntry(agent spiffeid.ID, node selectors.Set, id string) *selectors.Entry
	Subscribe(agent spiffeid.ID, node func() selectors.Set) *entries.Feed
}

// Signer is what the API needs of server/ca; to sign, and for package trust.
type Signer interface {
	SignWorkload(req ca.Request) ([]*x509.Certificate, error)
	SignAgent(id spiffeid.ID, key crypto.PublicKey) ([]*x509.Certificate, error)
	SignJWT(req ca.JWTRequest) (ca.Token, error)
	SignWIT(req ca.WITRequest) (ca.Token, error)
	SignDownstream(req ca.DownstreamRequest) ([]*x509.Certificate, error)
	trust.Authorities
}

// Federation is what the API needs of server/federation.
type Federation interface {
	trust.Federation
	// Changed is closed when any bundle is next added, changed or removed.
	Changed() <-chan struct{}
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

// Continuous asks admitted nodes again whether they are what they were.
type Continuous interface {
	// Run asks one node, by ask, until ctx ends (nil) or the node must go: a *nodes.DeniedError,
	// or another error, after which it attests again. spki is of the key behind the connection,
	// binding is the connection's.
	Run(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error
	// Fresh reports whether the node answered lately.
	Fresh(id spiffeid.ID) bool
	operate.Judge
}

// Attestor judges new agents. challenge sends bytes to the agent and returns its answer; its
// errors pass through Attest as they are. csrKey is the key that the agent wants an SVID for.
// binding is of the connection (RFC 9266, tls-exporter, 32 bytes), or nil where it has none.
type Attestor interface {
	Type() string
	Attest(ctx context.Context, payload []byte, csrKey crypto.PublicKey, binding []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error)
}

// Config of the API. Streams, Logger, Level and Now have a default.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Entries     Entries
	Signer      Signer
	Federation  Federation
	Revocations Revocations
	Nodes       Nodes
	Inventory   operate.Inventory
	// Continuous attestation of nodes that have a TPM; nil asks none of them again.
	Continuous Continuous
	// EKRoots are the CAs of TPM makers that attestors trust, to show.
	EKRoots []*x509.Certificate
	// Attestors by their type.
	Attestors []Attestor
	// AllowWithoutEvidence names the attestor types whose agents may have workload SVIDs
	// signed without evidence (SPIRE's agents send none).
	AllowWithoutEvidence []string
	// ServerSVID returns the server's present certificate, leaf first, with its key.
	ServerSVID func() (*tls.Certificate, error)
	// Streams keeps account of the agents' open streams.
	Streams *Streams
	// AdminIDs are admins besides those of admin entries, Roles whoever may do some things only.
	AdminIDs []spiffeid.ID
	Roles    []*gate.Role
	Limits   gate.Limits
	// Options of gRPC, for example to count calls. May be empty.
	Options  []grpc.ServerOption
	Policies Policies
	Logger   *slog.Logger
	// Level is that of Logger, to be changed while the server runs; now it is the one to return to.
	Level *slog.LevelVar
	Now   func() time.Time
}

// Server serves the API.
type Server struct {
	cfg       Config
	attestors map[string]Attestor
	gate      *gate.Gate
	health    *health.Server
	trust     *trust.Services
	operate   *operate.Services
	broadcast broadcast
}

// New makes the services and the gate before them; Serve opens it.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Streams == nil {
		cfg.Streams = NewStreams()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Level == nil {
		cfg.Level = &slog.LevelVar{}
	}
	s := &Server{cfg: cfg, attestors: map[string]Attestor{}, health: health.NewServer()}
	s.cfg.Signer = timedSigner{cfg.Signer, func(took time.Duration) { s.gate.Signed(took) }}
	for _, a := range cfg.Attestors {
		s.attestors[a.Type()] = a
	}
	s.trust = &trust.Services{TrustDomain: cfg.TrustDomain, Authorities: cfg.Signer, Federation: cfg.Federation, Revocations: cfg.Revocations}
	s.operate = &operate.Services{
		TrustDomain: cfg.TrustDomain, Nodes: cfg.Nodes, Inventory: cfg.Inventory, EKRoots: cfg.EKRoots, Entries: cfg.Entries, Federation: cfg.Federation,
		ServerSVID: cfg.ServerSVID, Level: cfg.Level, LaunchLevel: cfg.Level.Level(), Started: cfg.Now(), Now: cfg.Now,
	}
	if cfg.Continuous != nil {
		s.operate.Judge = cfg.Continuous
	}
	s.gate = gate.New(gate.Config{
		TrustDomain: cfg.TrustDomain, Authorities: s.authorities, ServerSVID: cfg.ServerSVID, Roles: s.roles, AdminIDs: cfg.AdminIDs, Scoped: cfg.Roles, Policy: cfg.Policies.gate(),
		Limits: cfg.Limits, Options: cfg.Options, Weight: weight, Admitted: s.admitted, Revoked: s.revoked,
		Stopping: func() { s.health.Shutdown(); cfg.Streams.stop() }, Logger: cfg.Logger, Now: cfg.Now,
	}, s.register)
	return s
}

func (s *Server) register(tcp, unix grpc.ServiceRegistrar) {
	for _, g := range []grpc.ServiceRegistrar{tcp, unix} {
		agentv1.RegisterAgentServer(g, &agentService{Server: s})
		entryv1.RegisterEntryServer(g, &entry.Service{TrustDomain: s.cfg.TrustDomain, Entries: s.cfg.Entries, NodeSelectors: s.nodeSelectors})
		svidv1.RegisterSVIDServer(g, &svidService{Server: s})
		nodev1.RegisterNodeServer(g, &nodeService{Server: s})
		s.trust.Register(g)
	}
	s.operate.Register(tcp, unix)
	healthv1.RegisterHealthServer(unix, s.health)
}

// weight is how many signatures a message asks for.
func weight(req any) int {
	switch req := req.(type) {
	case *svidv1.BatchNewX509SVIDRequest:
		return len(req.Params)
	case *svidv1.BatchNewWITSVIDRequest:
		return len(req.Params)
	}
	return 1
}

// Serve answers on both listeners until the context ends; running calls get 10 s to finish.
func (s *Server) Serve(ctx context.Context, tcp, unix net.Listener) error {
	return s.gate.Serve(ctx, tcp, unix)
}

// Load is how much there is to sign.
func (s *Server) Load() gate.Load { return s.gate.Load() }

// authorities are those of the trust domain's present bundle.
func (s *Server) authorities(td spiffeid.TrustDomain) []*x509.Certificate {
	if td == s.cfg.TrustDomain {
		b, _ := s.cfg.Signer.Bundle()
		return b.Roots()
	}
	if b := s.cfg.Federation.Bundle(td); b != nil {
		return b.X509
	}
	return nil
}

// roles are what registration entries grant to the holder of an SVID.
func (s *Server) roles(id spiffeid.ID) (admin, downstream bool) {
	for _, e := range s.cfg.Entries.BySPIFFEID(id) {
		admin, downstream = admin || e.Admin, downstream || e.Downstream
	}
	return admin, downstream
}

// admitted lets admitted nodes through the gate.
func (s *Server) admitted(ctx context.Context, c gate.Caller, denied error) error {
	err := s.authorize(ctx, c)
	if d, ok := errors.AsType[*nodes.DeniedError](err); ok && d.Reason <= nodes.MustReattest {
		return wire.Denied(d, denied) // SPIRE's text
	}
	return wire.AgentError(err)
}

func (s *Server) authorize(ctx context.Context, c gate.Caller) error {
	if err := s.revokedAgent(c); err != nil {
		return err
	}
	return s.cfg.Nodes.Authorize(ctx, c.ID, c.Cert.SerialNumber.String(), c.Cert.NotAfter)
}

// nodeSelectors of an agent; nil if it is not known.
func (s *Server) nodeSelectors(agent spiffeid.ID) selectors.Set {
	if n := s.cfg.Nodes.Get(agent); n != nil {
		return n.Selectors
	}
	return nil
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
