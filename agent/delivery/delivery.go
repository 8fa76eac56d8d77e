// SPDX-License-Identifier: Apache-2.0

// Package delivery is what every face of the agent does for a caller, however it speaks: find out
// who calls, which identities are his, have them signed, hand them over to exactly him, write down
// who received what, and do it again when anything changes. ARCHITECTURE.md draws the steps ("How
// one identity is issued").
//
//	Desk.Enter ─▶ Session ─▶ Entitled ─▶ X509 · JWT · WIT ─▶ Hand   (one call)
//	                 └─▶ Follow: the same, at each change           (a stream)
//
// Its errors are gRPC statuses, as the SPIFFE Workload Endpoint (section 6) and the faces' own
// standards want them: what the caller learns is the kind of reason, and a reference by which an
// operator finds all of it (Memory).
package delivery

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Workload is one attested process (agent/attest).
type Workload interface {
	Facts() *selectors.Facts
	Selectors() selectors.Set
	// Check returns an error once the process is no longer the one that was attested, alone on its
	// connection.
	Check() error
	// Changed returns a channel that is closed when something happens to the process from now on:
	// Check tells whether it still counts.
	Changed() <-chan struct{}
	// Done is closed when the process has exited.
	Done() <-chan struct{}
}

// Attestor attests the process behind a request.
type Attestor func(ctx context.Context) (Workload, error)

// SVIDs are the node's SVIDs (agent/svids). Errors of the three that sign may have the methods
// Refused() bool, a verdict, and Unsupported() bool, this server never does that.
type SVIDs interface {
	Ready() <-chan struct{}
	Match(set selectors.Set) []*selectors.Entry
	Nearest(set selectors.Set, n int) []selectors.Near
	X509(ctx context.Context, c svids.Caller, entries []*selectors.Entry) ([]*svids.SVID, error)
	JWT(ctx context.Context, c svids.Caller, entries []*selectors.Entry, audience []string) ([]*svids.SVID, error)
	WIT(ctx context.Context, c svids.Caller, entries []*selectors.Entry) ([]*svids.SVID, error)
	// Bundles returns our trust domain's, and after it those that the entries federate with.
	Bundles(entries []*selectors.Entry) []*trust.Bundle
	Subscribe(c svids.Caller) *svids.Subscription
}

// History keeps who received what (agent/history).
type History interface{ Record(...history.Delivery) }

// Config is what a Desk needs.
type Config struct {
	// Attest attests callers for Enter; a face that knows its workloads otherwise uses Open.
	Attest  Attestor
	SVIDs   SVIDs
	History History
	Memory  *Memory
	// View says which entries this desk deals in; nil is all.
	View func(*selectors.Entry) bool
	// HangUp closes the connection that a call came over, all of it; it is for callers who do not read.
	HangUp func(context.Context)
	// Tampered is told of an SVID of one process when another process got at that one, whose key may be known then. It must
	// not block, and may be nil.
	Tampered func(s *svids.SVID, why string)
	Logger   *slog.Logger
	Now      func() time.Time
}

// Desk hands out identities for one face, or for one of its sockets. It is safe for concurrent use.
type Desk struct {
	cfg         Config
	sendTimeout time.Duration
}

// New returns a Desk.
func New(cfg Config) *Desk {
	if cfg.HangUp == nil {
		cfg.HangUp = func(context.Context) {}
	}
	return &Desk{cfg, sendTimeout}
}

// Ready is closed once the agent knows entries and bundle: then callers get answers, the server's
// presence or not.
func (d *Desk) Ready() <-chan struct{} { return d.cfg.SVIDs.Ready() }

// Enter attests the caller of a request and waits until there is something to answer.
func (d *Desk) Enter(ctx context.Context) (*Session, error) {
	w, err := d.cfg.Attest(ctx)
	if err != nil {
		return nil, d.refuse(ctx, nil, err)
	}
	return d.Open(ctx, w)
}

// Open does the same for a workload that is attested already, on whose behalf somebody else calls.
func (d *Desk) Open(ctx context.Context, w Workload) (*Session, error) {
	if err := d.wait(ctx); err != nil {
		return nil, err
	}
	return &Session{Workload: w, desk: d}, nil
}

// readyTimeout is how long a call waits for an agent that has just started.
const readyTimeout = 10 * time.Second

func (d *Desk) wait(ctx context.Context) error {
	select {
	case <-d.Ready():
		return nil
	default:
	}
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	select {
	case <-d.Ready():
		return nil
	case <-timeout.C:
		return status.Error(codes.Unavailable, "the agent has no entries from the server yet, try again")
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}
