// SPDX-License-Identifier: Apache-2.0

// Package api is what the server does for those who call it: SPIRE's server APIs, so that SPIRE's
// agents and tools work with this server, and our own Node and NodeAdmin. One file is one service:
//
//	on both listeners      Agent Bundle Entry SVID Node NodeAdmin
//	on the Unix socket     Debug Health
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
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/gate"
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
	// Check judges a node by the rules of the named group, or of its own for "", where the proposed
	// ones take the place of those called the same. Without filesKnown no list of files was judged.
	Check(n *nodes.Node, group string, proposed []*policy.Group) (broken []policy.Finding, filesKnown bool, err error)
}

// Attestor judges new agents. challenge sends bytes to the agent and returns its answer; its
// errors pass through Attest as they are. csrKey is the key that the agent wants an SVID for.
// binding is of the connection (RFC 9266, tls-exporter, 32 bytes), or nil where it has none.
type Attestor interface {
	Type() string
	Attest(ctx context.Context, payload []byte, csrKey crypto.PublicKey, binding []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error)
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
	// EKRoots are the CAs of TPM makers that attestors trust, to show.
	EKRoots []*x509.Certificate
	// Attestors by their type.
	Attestors []Attestor
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
	attestors map[string]Attestor
	started   time.Time
	gate      *gate.Gate
	health    *health.Server
	watchers  *watchers
}

// New makes the services and the gate before them; Serve opens it.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, attestors: map[string]Attestor{}, started: cfg.Now(), health: health.NewServer(), watchers: newWatchers()}
	for _, a := range cfg.Attestors {
		s.attestors[a.Type()] = a
	}
	s.gate = gate.New(gate.Config{
		TrustDomain: cfg.TrustDomain, Authorities: s.authorities, ServerSVID: cfg.ServerSVID, Roles: s.roles, Admitted: s.admitted,
		Stopping: func() { s.health.Shutdown(); s.watchers.stop() }, Now: cfg.Now,
	}, s.register)
	return s
}

func (s *Server) register(tcp, unix grpc.ServiceRegistrar) {
	for _, g := range []grpc.ServiceRegistrar{tcp, unix} {
		agentv1.RegisterAgentServer(g, &agentService{Server: s})
		bundlev1.RegisterBundleServer(g, &bundleService{Server: s})
		entryv1.RegisterEntryServer(g, &entryService{Server: s})
		svidv1.RegisterSVIDServer(g, &svidService{Server: s})
		nodev1.RegisterNodeServer(g, &nodeService{Server: s})
		adminv1.RegisterNodeAdminServer(g, &nodeAdminService{Server: s})
	}
	debugv1.RegisterDebugServer(unix, &debugService{Server: s})
	healthv1.RegisterHealthServer(unix, s.health)
}

// Serve answers on both listeners until the context ends; running calls get 10 s to finish.
func (s *Server) Serve(ctx context.Context, tcp, unix net.Listener) error {
	return s.gate.Serve(ctx, tcp, unix)
}

// authorities are those of the present bundle.
func (s *Server) authorities() []*x509.Certificate {
	b, _ := s.cfg.Signer.Bundle()
	return b.Roots()
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
	return s.cfg.Nodes.Authorize(ctx, c.ID, c.Cert.SerialNumber.String(), c.Cert.NotAfter)
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
