// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
)

// maxFeedMessage bounds one message of the feed, in bytes. The first one holds every entry of
// the node: at about 400 bytes each, room for 600,000.
const maxFeedMessage = 256 << 20

// follow keeps the sink up to date until that breaks: by the feed, or by polling a server of SPIRE's.
func (c *Client) follow(ctx context.Context, conn *grpc.ClientConn, back *backoff) error {
	err := c.watch(ctx, conn, back)
	if status.Code(err) != codes.Unimplemented {
		return err
	}
	c.spire.Store(true)
	c.feedState = nil
	c.cfg.Logger.Info("the server has SPIRE's services only: entries are polled, and it signs without evidence", "every", pollInterval)
	return c.poll(ctx, conn, back)
}

// watch follows the feed into the sink until it breaks.
func (c *Client) watch(ctx context.Context, conn *grpc.ClientConn, back *backoff) error {
	stream, err := nodepb.NewNodeClient(conn).Watch(ctx, grpc.MaxCallRecvMsgSize(maxFeedMessage))
	if err != nil {
		return verdict(err)
	}
	// An error of Send is io.EOF; Recv has the reason.
	_ = stream.Send(&nodepb.WatchRequest{Resume: c.feedState})
	for {
		msg, err := stream.Recv()
		if err != nil {
			return verdict(err)
		}
		back.reset()
		c.connected.Store(true)
		if err := c.deliver(msg); err != nil {
			return err
		}
		c.feedState = msg.State
		if msg.Bundle != nil {
			_ = stream.Send(&nodepb.WatchRequest{BundleSequence: msg.Bundle.SequenceNumber})
		}
	}
}

func (c *Client) deliver(msg *nodepb.WatchResponse) error {
	if msg.Bundle != nil {
		b, err := parseBundle(c.cfg.TrustDomain, msg.Bundle)
		if err != nil {
			return err
		}
		c.newBundle(b)
		c.sink.Bundle(b)
	}
	entries := make([]*selectors.Entry, 0, len(msg.Entries))
	for _, pb := range msg.Entries {
		e, err := parseEntry(pb)
		if err != nil {
			c.cfg.Logger.Warn("entry ignored", "entry", pb.GetId(), "error", err)
			continue
		}
		entries = append(entries, e)
	}
	if msg.Full || len(entries) > 0 || len(msg.Removed) > 0 {
		c.sink.Entries(msg.Full, entries, msg.Removed, msg.Revision)
	}
	return nil
}

// signTimeout bounds one signing call, so that a server that hangs counts as one that is away.
const signTimeout = 10 * time.Second

// Refusal is the server's verdict on a signing request, as against a fault.
type Refusal struct{ Message string }

func (r *Refusal) Error() string { return "the server refused to sign: " + r.Message }

// Refused marks the error as a verdict for whoever must not know this package.
func (r *Refusal) Refused() bool { return true }

// SignX509SVID has the server sign a workload's key on the given facts. A verdict of the
// server is a *Refusal.
func (c *Client) SignX509SVID(ctx context.Context, entry *selectors.Entry, csr []byte, facts *selectors.Facts) ([]*x509.Certificate, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return nil, errors.New("the agent has no connection to the server yet")
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	if c.spire.Load() {
		return signBySPIRE(ctx, conn, entry.ID, csr)
	}
	resp, err := nodepb.NewNodeClient(conn).SignX509SVID(ctx, &nodepb.SignX509SVIDRequest{
		EntryId: entry.ID, EntryRevision: entry.Revision, Csr: csr, Facts: factsProto(facts),
	})
	if err != nil {
		return nil, signingError(err)
	}
	return parseChain(resp.GetSvid().GetCertChain())
}

// signingError tells a verdict of the server from a fault.
func signingError(err error) error {
	switch status.Code(err) {
	case codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument, codes.PermissionDenied:
		return &Refusal{status.Convert(err).Message()}
	}
	return fmt.Errorf("ask the server to sign: %w", err)
}
