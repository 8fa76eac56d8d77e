// SPDX-License-Identifier: Apache-2.0

// Package delegated serves SPIRE's Delegated Identity API (spire.api.agent.delegatedidentity.v1): a delegate, which is a
// workload of this node with one of the SPIFFE IDs that an operator wrote down, asks for the identities of others.
//
//	caller attested as at the Workload API ──▶ one of its SPIFFE IDs is a delegate's
//	pid        the process is pinned and attested: the server signs on its evidence
//	selectors  nobody is attested: only with a server that takes an agent's word, as SPIRE's do
//
// Delegate and process are checked before each message. Identities with rights at the server (admin, downstream) are for
// nobody but their workload.
package delegated

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	pb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Config is what New needs.
type Config struct {
	// Callers is the desk that attests who calls; Workloads hands out the identities.
	Callers, Workloads *delivery.Desk
	// Delegates are the SPIFFE IDs that may ask.
	Delegates []spiffeid.ID
	// Process attests the process with a number, for as long as ctx lasts (attest.Attestor.Process): process.ErrGone if there
	// is none.
	Process func(ctx context.Context, pid int) (delivery.Workload, error)
	// WantsEvidence reports whether the server signs for attested processes only.
	WantsEvidence func() bool
	// Bundles are all that the agent has, ours first.
	Bundles func() []*trust.Bundle
	Logger  *slog.Logger
}

// Server implements the service DelegatedIdentity.
type Server struct {
	pb.UnimplementedDelegatedIdentityServer
	cfg Config
}

// New returns a Server; register it with Register.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Register adds the service to g.
func (s *Server) Register(g *grpc.Server) { pb.RegisterDelegatedIdentityServer(g, s) }

// delegate is a caller who may ask.
type delegate struct {
	*delivery.Session
	id spiffeid.ID
	s  *Server
}

var errNoDelegate = errors.New("the caller is not configured as an authorized delegate")

// enter attests the caller and finds the SPIFFE ID by which it is a delegate.
func (s *Server) enter(ctx context.Context) (*delegate, error) {
	session, err := s.cfg.Callers.Enter(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := session.Entitled(spiffeid.ID{}); err != nil {
		return nil, err
	}
	d := &delegate{Session: session, s: s}
	if d.id = d.authority(); d.id.IsZero() {
		s.cfg.Logger.Warn("a workload that is no delegate was refused", "pid", session.Facts().Process.TGID)
		return nil, status.Errorf(codes.PermissionDenied, "%v: write one of its SPIFFE IDs into authorized_delegates", errNoDelegate)
	}
	return d, nil
}

// authority is the first of the caller's SPIFFE IDs that is a delegate's, or none.
func (d *delegate) authority() spiffeid.ID {
	for _, e := range d.Entries() {
		if slices.Contains(d.s.cfg.Delegates, e.SPIFFEID) {
			return e.SPIFFEID
		}
	}
	return spiffeid.ID{}
}

// Check judges the delegate as it is now. It makes a delegate a delivery.Workload.
func (d *delegate) Check() error {
	if err := d.Session.Check(); err != nil {
		return err
	}
	if d.authority().IsZero() {
		return errNoDelegate
	}
	return nil
}

// itself is a delegate who asks for what is no workload's.
func (s *Server) itself(ctx context.Context) (*delivery.Session, error) {
	d, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	return s.cfg.Callers.Open(ctx, d)
}

// open returns the workload that a request names, for as long as ctx lasts.
func (s *Server) open(ctx context.Context, pid int32, list []*types.Selector) (*delivery.Session, error) {
	d, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	if (pid == 0) == (len(list) == 0) || pid < 0 {
		return nil, status.Error(codes.InvalidArgument, "must provide either selectors or non-zero PID, but not both")
	}
	var w delivery.Workload
	if pid != 0 {
		w, err = s.attested(ctx, int(pid))
	} else {
		w, err = s.described(list)
	}
	if err != nil {
		return nil, err
	}
	session, err := s.cfg.Workloads.Open(ctx, onBehalf(ctx, d, w))
	if err != nil {
		return nil, err
	}
	session.Via = d.id
	return session, nil
}

func (s *Server) attested(ctx context.Context, pid int) (delivery.Workload, error) {
	w, err := s.cfg.Process(ctx, pid)
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, process.ErrGone), errors.Is(err, process.ErrReplaced):
		return nil, status.Errorf(codes.NotFound, "%v", err)
	case err != nil:
		s.cfg.Logger.Warn("a delegate's workload can not be attested", "pid", pid, "error", err)
		return nil, status.Error(codes.Unavailable, "workload attestation failed, try again")
	}
	return w, nil
}

// described takes the delegate's word for what the workload is.
func (s *Server) described(list []*types.Selector) (delivery.Workload, error) {
	if s.cfg.WantsEvidence() {
		return nil, status.Error(codes.PermissionDenied, "this agent's server signs on the evidence of an attested process: name the workload by its pid instead of selectors")
	}
	parsed := make([]selectors.Selector, len(list))
	for i, x := range list {
		given := selectors.Selector{Type: x.GetType(), Value: x.GetValue()}
		var err error
		if parsed[i], err = selectors.Parse(given.String()); err != nil || parsed[i] != given {
			return nil, status.Errorf(codes.InvalidArgument, "could not parse provided selectors: %q is no selector", given)
		}
	}
	return description{set: selectors.NewSet(parsed...)}, nil
}
