// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
)

// readyTimeout is how long a call waits for an agent that has just started.
const readyTimeout = 10 * time.Second

// message is a *M that is a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// stream attests the caller, sends what answer gives, and again whenever that changes. The
// caller is checked before each send, so nothing reaches a connection that changed hands.
func stream[M any, P message[M]](s *Server, st grpc.ServerStreamingServer[M], answer func(context.Context, Workload) (P, []*svids.SVID, error)) error {
	ctx := st.Context()
	w, err := s.enter(ctx)
	if err != nil {
		return err
	}
	sub := s.cfg.SVIDs.Subscribe(w.Selectors())
	defer sub.Close()
	var last P
	for {
		changed := w.Changed() // before the check that it follows
		bundles := sub.Version()
		next, delivered, err := answer(ctx, w)
		if err != nil {
			return err
		}
		if last == nil || !proto.Equal(last, next) {
			if err := w.Check(); err != nil {
				return s.refuse(ctx, err)
			}
			if err := st.Send(next); err != nil {
				return err
			}
			s.delivered(w, delivered)
			last = next
		}
		sub.Has(bundles)
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-w.Done():
			return status.Error(codes.PermissionDenied, "the caller has exited")
		case <-changed:
			if err := w.Check(); err != nil {
				return s.refuse(ctx, err)
			}
		case <-sub.C():
		}
	}
}

// wait holds a call until the first entries and bundle are here.
func (s *Server) wait(ctx context.Context) error {
	select {
	case <-s.cfg.SVIDs.Ready():
		return nil
	default:
	}
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	select {
	case <-s.cfg.SVIDs.Ready():
		return nil
	case <-timeout.C:
		return status.Error(codes.Unavailable, "the agent has no entries from the server yet, try again")
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// refuse ends a call whose caller can not be attested or is no longer who it was. The caller
// learns the kind of reason; what was seen stays in the agent's log.
func (s *Server) refuse(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	s.cfg.Logger.Warn("caller refused", "reason", err)
	return status.Error(codes.PermissionDenied, err.Error())
}

// delivered records who received what.
func (s *Server) delivered(w Workload, list []*svids.SVID) {
	if len(list) == 0 {
		return
	}
	f, now := w.Facts(), s.cfg.Now().UTC()
	attrs := []any{"pid", f.Process.TGID, "exec_id", f.Process.ExecID, "sha256", f.Executable.SHA256.String()}
	records := make([]history.Delivery, len(list))
	for i, v := range list {
		attrs = append(attrs, slog.Group(v.ID.String(), "kind", v.Kind, "serial", v.Serial, "entry", v.EntryID))
		records[i] = history.Delivery{Time: now, Kind: v.Kind.String(), SPIFFEID: v.ID.String(), Serial: v.Serial, Entry: v.EntryID,
			Audience: v.Audience, Process: f.Process, SHA256: f.Executable.SHA256, Tier: f.Tier.String()}
	}
	s.cfg.History.Record(records...)
	s.cfg.Logger.Info("delivered", attrs...)
}
