// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
)

// nodeService is our own assay.node.v1.Node, for agents that send evidence.
type nodeService struct {
	nodev1.UnimplementedNodeServer
	*Server
}

// Watch pushes the caller's entries, the trust bundle and those that the entries federate with, and
// ends when the caller is no longer admitted.
func (s *nodeService) Watch(stream nodev1.Node_WatchServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, leave := s.whileAdmitted(stream.Context())
	defer leave()
	agent := gate.CallerOf(ctx).ID
	defer s.cfg.Streams.acknowledged(agent, first.BundleSequence, stream)()
	deltas := s.deltas(ctx, agent, first.Resume)
	known := &foreignBundles{s: s.Server, agent: agent, sent: map[spiffeid.TrustDomain]*federation.Bundle{}}
	var bundleChanged, foreignChanged <-chan struct{} // nil until the first, full message
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
			foreignChanged = known.update(msg)
		case <-bundleChanged:
			msg.Bundle, bundleChanged = s.bundle()
		case <-foreignChanged:
			foreignChanged = known.update(msg)
			if len(msg.Federated)+len(msg.FederatedRemoved) == 0 {
				continue
			}
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
	changed, leave := s.cfg.Streams.enter(c.ID)
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
			case <-s.cfg.Streams.stopped:
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
