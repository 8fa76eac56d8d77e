// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

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
	uses := s.cfg.Streams.follow(agent, first.BundleSequence, stream)
	defer uses.leave()
	feed := s.cfg.Entries.Subscribe(agent, func() selectors.Set { return s.nodeSelectors(agent) })
	defer feed.Close()
	feed.Resume(first.Resume)
	known := &foreignBundles{s: s.Server, agent: agent, sent: map[spiffeid.TrustDomain]*federation.Bundle{}}
	var bundleChanged, foreignChanged, listsChanged <-chan struct{} // nil until the first, full message
	bundle := func() (gate.Encoded, error) {
		b, err := s.bundle()
		if err != nil {
			return nil, wire.Error(err)
		}
		bundleChanged = b.changed
		uses.told(b.sequence)
		return b.fields, nil
	}
	for {
		msg := &nodev1.WatchResponse{}
		select {
		case <-ctx.Done():
			return endOf(ctx)
		case <-feed.Changed():
			d, err := feed.Take()
			if err != nil {
				return watchError(err)
			}
			first := bundleChanged == nil
			if d.Empty() && !first {
				continue
			}
			msg = wire.Delta(d)
			if first {
				fields, err := bundle()
				if err != nil {
					return err
				}
				msg.ProtoReflect().SetUnknown(protoreflect.RawFields(fields)) // written out as they are
				msg.Revocations, listsChanged = s.lists()
			}
			foreignChanged = known.update(msg)
		case <-bundleChanged:
			fields, err := bundle()
			if err == nil {
				err = stream.SendMsg(fields)
			}
			if err != nil {
				return err
			}
			continue
		case <-listsChanged:
			msg.Revocations, listsChanged = s.lists()
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
	check := func() {
		if err := s.stillAdmitted(ctx, c); err != nil {
			cancel(err)
		}
	}
	leave := s.cfg.Streams.enter(c.ID, &openStream{check, func() {
		cancel(status.Error(codes.Unavailable, "the server is stopping; call again"))
	}})
	expires := time.AfterFunc(c.Cert.NotAfter.Sub(s.cfg.Now()), check)
	check() // it may have changed before we listened
	return ctx, func() { expires.Stop(); leave(); cancel(nil) }
}

// endOf is the answer to a stream whose context of whileAdmitted has ended.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return cause
	}
	return status.FromContextError(ctx.Err()).Err()
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
