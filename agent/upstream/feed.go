// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/servers"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/agent/upstream/wire"
	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
)

// maxFeedMessage bounds one message of the feed, in bytes. The first one holds every entry of
// the node: at about 400 bytes each, room for 600,000.
const maxFeedMessage = 256 << 20

// follow keeps the sink up to date until that breaks: by the feed, or by polling a server of SPIRE's.
func (c *Client) follow(ctx context.Context, conn *servers.Conn, back *backoff) error {
	err := c.watch(ctx, conn, back)
	if status.Code(err) != codes.Unimplemented {
		return err
	}
	c.spire.Store(true)
	c.feedState = nil
	c.cfg.Logger.Info("the server has SPIRE's services only: entries are polled, and it signs without evidence", "every", pollInterval)
	return c.poll(ctx, conn.ClientConn, back)
}

// watch follows the feed into the sink until it breaks.
func (c *Client) watch(ctx context.Context, conn *servers.Conn, back *backoff) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(c.tooSlow, func() { cancel(errSlow) })
	defer silent.Stop()
	stream, err := nodepb.NewNodeClient(conn).Watch(ctx, grpc.MaxCallRecvMsgSize(maxFeedMessage))
	if err != nil {
		return verdict(err)
	}
	// An error of Send is io.EOF; Recv has the reason.
	_ = stream.Send(&nodepb.WatchRequest{Resume: c.feedState})
	acks := acknowledge(stream)
	var said order
	for first := true; ; first = false {
		msg, err := stream.Recv()
		if errors.Is(context.Cause(ctx), errSlow) {
			return errSlow
		} else if err != nil {
			return verdict(err)
		}
		silent.Stop()
		back.reset()
		if first {
			c.reached(stream.Context(), conn)
			c.tell(c.life.Heard(c.server), "hear")
		}
		if err := said.next(msg); err != nil {
			return err
		}
		settled, err := c.deliver(msg, first)
		if err != nil {
			return err
		}
		if len(msg.State) > 0 { // else it is about bundles only
			c.feedState = msg.State
		}
		if msg.Bundle != nil {
			acks.put(ack{msg.Bundle.SequenceNumber, settled})
		}
	}
}

// ack is a bundle that the workloads have when settled is closed.
type ack struct {
	sequence uint64
	settled  <-chan struct{}
}

// acks is one place: an ack that waits is replaced by a later one.
type acks chan ack

// acknowledge tells the server of each ack that settles, until the stream ends.
func acknowledge(stream nodepb.Node_WatchClient) acks {
	ctx, next := stream.Context(), make(acks, 1)
	go func() {
		for {
			var a ack
			select {
			case a = <-next:
			case <-ctx.Done():
				return
			}
			select {
			case <-a.settled:
				_ = stream.Send(&nodepb.WatchRequest{BundleSequence: a.sequence})
			case <-ctx.Done():
				return
			}
		}
	}()
	return next
}

// put has one caller.
func (a acks) put(latest ack) {
	select {
	case <-a:
	default:
	}
	a <- latest
}

// deliver gives the sink what the server says; the first message of a stream has all foreign bundles. The
// returned channel is closed when the workloads have the bundles.
func (c *Client) deliver(msg *nodepb.WatchResponse, first bool) (settled <-chan struct{}, err error) {
	change := trust.Change{Full: first}
	if change.Own, err = c.ownBundle(msg); err != nil {
		return nil, err
	}
	if change.Own != nil {
		c.newBundle(change.Own)
	}
	for _, name := range msg.FederatedRemoved {
		if td, err := spiffeid.TrustDomainFromString(name); err == nil {
			change.Removed = append(change.Removed, td)
		}
	}
	for _, pb := range msg.Federated {
		td, err := spiffeid.TrustDomainFromString(pb.GetTrustDomain())
		if err != nil {
			c.cfg.Logger.Warn("bundle of another trust domain ignored", "trust_domain", pb.GetTrustDomain(), "error", err)
			continue
		}
		b, err := wire.Bundle(td, pb)
		if err != nil { // and an older one is not the truth any more
			c.cfg.Logger.Warn("bundle of another trust domain ignored, its SVIDs are not trusted", "trust_domain", td, "error", err)
			change.Removed = append(change.Removed, td)
			continue
		}
		change.Foreign = append(change.Foreign, b)
	}
	settled = c.sink.Trust(change)
	entries := make([]*selectors.Entry, 0, len(msg.Entries))
	for _, pb := range msg.Entries {
		e, err := wire.Entry(pb)
		if err != nil {
			c.cfg.Logger.Warn("entry ignored", "entry", pb.GetId(), "error", err)
			continue
		}
		entries = append(entries, e)
	}
	if msg.Full || len(entries) > 0 || len(msg.Removed) > 0 {
		c.sink.Entries(msg.Full, entries, msg.Removed, msg.Revision)
	}
	return settled, nil
}

// ownBundle returns the bundle of our trust domain, with the revocation lists, if the server says anything new of
// either.
func (c *Client) ownBundle(msg *nodepb.WatchResponse) (*trust.Bundle, error) {
	if msg.Bundle == nil && (msg.Revocations == nil || c.own == nil) {
		return nil, nil
	}
	if msg.Bundle != nil {
		b, err := wire.OwnBundle(c.cfg.TrustDomain, msg.Bundle)
		if err != nil {
			return nil, err
		}
		c.own = b
	}
	if msg.Revocations != nil {
		r, err := trust.ReadRevoked(msg.Revocations.Crls)
		if err != nil {
			return nil, err
		}
		c.revoked = r
	}
	return c.own.WithRevoked(c.revoked), nil
}
