// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/svids"
)

// Stream says what a stream tells its workload.
type Stream[M any] struct {
	// Offer returns what there is to tell now, and the SVIDs in it. An error ends the stream.
	Offer func(context.Context) (M, []*svids.SVID, error)
	// Same reports whether the workload, who was told a, need not be told b. Before the first message a is the
	// zero M.
	Same func(a, b M) bool
	// Send sends one message.
	Send func(M) error
	// Again has Offer asked again, beside every change of what the Manager knows; it may be nil.
	Again <-chan struct{}
}

// sendTimeout is how long a stream's client may leave unread what fills its window, with something newer to send.
const sendTimeout = 30 * time.Second

// Follow sends what the stream offers, and again whenever that changes, until the workload is no longer
// the one that was attested, or ctx ends. The workload is checked before each message, so nothing
// reaches a connection that changed hands. Only the newest is sent: what changes while the client does not read is not kept.
func Follow[M any](ctx context.Context, s *Session, st Stream[M]) error {
	sub := s.desk.cfg.SVIDs.Subscribe(s)
	defer sub.Close()
	var last M
	var held []*svids.SVID
	for {
		changed := s.Changed() // before the check that it follows
		bundles := sub.Version()
		next, list, err := st.Offer(ctx)
		if err != nil {
			return err
		}
		if !st.Same(last, next) {
			if err := s.Hand(ctx, list, func() error { return s.desk.send(ctx, func() error { return st.Send(next) }) }); err != nil {
				return err
			}
			last, held = next, list
		}
		sub.Has(bundles)
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.Done():
			return status.Error(codes.PermissionDenied, "the caller has exited")
		case <-changed:
			if err := s.Check(); err != nil {
				s.desk.report(held, err)
				return s.desk.refuse(ctx, s.Workload, err)
			}
		case <-sub.C():
		case <-st.Again:
		}
	}
}

// tampered is the kind of a refusal of a workload whose memory or execution another process got at (agent/caller).
const tampered = "tampered"

// report tells of the SVIDs that a workload held when it was refused, if it was tampered with.
func (d *Desk) report(held []*svids.SVID, refusal error) {
	var r interface{ Kind() string }
	if d.cfg.Tampered == nil || !errors.As(refusal, &r) || r.Kind() != tampered {
		return
	}
	for _, s := range held {
		if s.OneProcess() {
			d.cfg.Tampered(s, refusal.Error())
		}
	}
}

// send sends to a client who reads. Else the whole connection is closed: gRPC keeps up to 64 KB of a stream that has ended until
// the client makes room for them, and would let him open another.
func (d *Desk) send(ctx context.Context, send func() error) error {
	slow := time.AfterFunc(d.sendTimeout, func() {
		d.cfg.Logger.Warn("workload connection closed: the caller does not read", "waited", d.sendTimeout)
		d.cfg.HangUp(ctx)
	})
	defer slow.Stop()
	return send()
}
