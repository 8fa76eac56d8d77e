// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
)

// nodeService is our own assay.node.v1.Node, for agents that send evidence.
type nodeService struct {
	nodev1.UnimplementedNodeServer
	*Server
}

// Watch pushes the caller's entries and the trust bundle, and ends when the caller is no
// longer admitted.
func (s *nodeService) Watch(stream nodev1.Node_WatchServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, leave := s.whileAdmitted(stream.Context())
	defer leave()
	defer s.acknowledged(gate.CallerOf(ctx).ID, first.BundleSequence, stream)()
	deltas := s.deltas(ctx, gate.CallerOf(ctx).ID, first.Resume)
	var bundleChanged <-chan struct{} // nil until the first, full message
	var revision int64
	for {
		msg := &nodev1.WatchResponse{Revision: revision}
		select {
		case <-ctx.Done():
			return endOf(ctx)
		case d := <-deltas:
			if d.err != nil {
				return watchError(d.err)
			}
			msg, revision = wire.Delta(d.Delta), d.Revision
			if bundleChanged == nil {
				msg.Bundle, bundleChanged = s.bundle()
			}
		case <-bundleChanged:
			msg.Bundle, bundleChanged = s.bundle()
		}
		if err := stream.Send(msg); err != nil {
			return err
		}
	}
}

// whileAdmitted returns a context for a stream of an agent. It ends, with what to answer as its
// cause (endOf), when the caller is no longer admitted or the server stops.
func (s *nodeService) whileAdmitted(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := gate.CallerOf(ctx)
	changed, leave := s.watchers.enter(c.ID)
	go func() {
		defer leave()
		expired := time.NewTimer(c.Cert.NotAfter.Sub(s.cfg.Now()))
		defer expired.Stop()
		for {
			// First of all: it may have changed before we listened.
			if err := s.stillAdmitted(ctx, c); err != nil {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case <-expired.C:
			case <-s.watchers.stopped:
				cancel(status.Error(codes.Unavailable, "the server is stopping; call again"))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// endOf is the answer to a stream whose context of whileAdmitted has ended.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return cause
	}
	return status.FromContextError(ctx.Err()).Err()
}

func (s *nodeService) bundle() (*types.Bundle, <-chan struct{}) {
	b, changed := s.cfg.Signer.Bundle()
	return wire.Bundle(s.cfg.TrustDomain, b, nil), changed
}

// stillAdmitted ends a watch. An agent that has a newer SVID is asked to call again with it;
// one that has not is refused then, with the reason.
func (s *nodeService) stillAdmitted(ctx context.Context, c gate.Caller) error {
	err := s.authorize(ctx, c)
	var d *nodes.DeniedError
	if errors.As(err, &d) && (d.Reason == nodes.NotActive || d.Reason == nodes.Expired) {
		return status.Errorf(codes.Aborted, "%v; call again with the present SVID", d)
	}
	return wire.AgentError(err)
}

func watchError(err error) error {
	if errors.Is(err, entries.ErrClosed) {
		return status.Error(codes.Aborted, "the server lost track of the entries; call again")
	}
	return wire.Error(err)
}

type deltaOrError struct {
	entries.Delta
	err error
}

// deltas reads the agent's feed until the context ends.
func (s *nodeService) deltas(ctx context.Context, agent spiffeid.ID, resume []byte) <-chan deltaOrError {
	feed := s.cfg.Entries.Subscribe(agent, func() selectors.Set { return s.nodeSelectors(agent) })
	feed.Resume(resume)
	out := make(chan deltaOrError)
	go func() {
		defer feed.Close()
		for {
			d, err := feed.Next(ctx)
			select {
			case out <- deltaOrError{d, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// SignX509SVID signs for a process that the agent describes. The selectors are derived here,
// from the facts; the agent's word for a selector is never taken.
func (s *nodeService) SignX509SVID(ctx context.Context, req *nodev1.SignX509SVIDRequest) (*nodev1.SignX509SVIDResponse, error) {
	agent := gate.CallerOf(ctx).ID
	csr, err := wire.ReadCSR(req.Csr)
	if err != nil {
		return nil, err
	}
	facts, err := wire.ReadFacts(req.Facts)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "malformed facts: %v", err)
	}
	e := s.cfg.Entries.AuthorizedEntry(agent, s.nodeSelectors(agent), req.EntryId)
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	want := e.SelectorSet()
	if len(want) == 0 {
		return nil, status.Error(codes.FailedPrecondition, "the entry has no selectors and matches nothing")
	}
	if missing := want.Missing(selectors.Derive(facts)); len(missing) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "the evidence does not satisfy entry %s: missing %s", e.ID, strings.Join(missing.Strings(), ", "))
	}
	if err := s.fresh(ctx, agent); err != nil {
		return nil, err
	}
	chain, err := s.signEntry(e, csr)
	if err != nil {
		return nil, err
	}
	s.issued(e, agent, chain[0], facts.Tier.String(), "pid", facts.Process.TGID, "exec_id", facts.Process.ExecID, "boot_id", facts.Process.BootID, "executable", facts.Executable.Path, "sha256", facts.Executable.SHA256)
	return &nodev1.SignX509SVIDResponse{Svid: wire.SVID(e.SPIFFEID, chain)}, nil
}
