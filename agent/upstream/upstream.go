// SPDX-License-Identifier: Apache-2.0

// Package upstream is the agent's conversation with the server: it has the node attested,
// keeps the node's own SVID fresh, follows the pushed feed of entries and bundle, and has
// workload keys signed on evidence.
//
//	attest   no client certificate   Agent.AttestAgent, then Bundle.GetBundle on the same connection
//	then     mTLS, the node's key    Node.Watch (one stream), Node.Sign…SVID; with a TPM Node.Requote
//	         a server of SPIRE's     Entry.GetAuthorizedEntries and Bundle.Get…Bundle in turn, SVID.…New…SVID
//	renew    reattestable: attest again (for a TPM: a fresh quote). Otherwise Agent.RenewAgent
//
// Protobuf types do not leave this package.
package upstream

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Attestor proves which node this is, in one attestor type of SPIRE's AttestAgent stream.
type Attestor interface {
	// Type is the attestor's name on the wire.
	Type() string
	// Begin makes the node's new key and the first message.
	Begin(ctx context.Context) (payload []byte, key crypto.Signer, err error)
	// Answer answers a challenge of the server. binding names the connection (RFC 9266, tls-exporter).
	Answer(ctx context.Context, challenge, binding []byte) ([]byte, error)
	// Restore returns the key that Save described, or an error when it can not be had any more.
	Restore(saved []byte) (crypto.Signer, error)
	// Save describes the key so that Restore finds it after a restart.
	Save(key crypto.Signer) ([]byte, error)
}

// Sink takes what the server pushes (agent/svids).
type Sink interface {
	Entries(full bool, changed []*selectors.Entry, removed []string, revision int64)
	// Trust returns a channel that is closed when the workloads have the bundles.
	Trust(trust.Change) (settled <-chan struct{})
}

// Config is what New needs.
type Config struct {
	// ServerAddress is host:port of the server's TCP endpoint.
	ServerAddress string
	TrustDomain   spiffeid.TrustDomain
	// Bootstrap is the bundle that authenticates the server the first time; nil trusts
	// whatever answers, once (insecure_bootstrap).
	Bootstrap *spiffebundle.Bundle
	Attestor  Attestor
	// History is anchored in each quote of a Requoter; nil is an empty one.
	History History
	// Version is the agent's, for the server's list of nodes.
	Version string
	// DataDir holds agent.json: the node's SVID and the bundle, between runs.
	DataDir string
	Logger  *slog.Logger
	Now     func() time.Time
}

// Client is the conversation. Make one with New and call Run.
type Client struct {
	cfg  Config
	sink Sink

	mu   sync.Mutex
	node *node            // nil before the first attestation
	conn *grpc.ClientConn // mTLS, of node

	clock     chan struct{} // holds one if the clock was set and no session has looked since
	connected atomic.Bool
	spire     atomic.Bool // conn's server has SPIRE's services only
	returns   bool        // the node was admitted in this run and can attest again; Run's own
	due       func()      // ends the session so that the node's SVID is renewed; the session's own
	feedState []byte      // names the entries that the sink has, for the server; Run's own

	// What the feed last said of our trust domain; the feed's own.
	own     *trust.Bundle
	revoked *trust.Revoked
}

// node is the agent's own identity.
type node struct {
	svid         *x509svid.SVID
	bundle       *spiffebundle.Bundle
	reattestable bool
	tainted      bool // by an authority that is tainted, so its renewal is due; the feed's own
	renewed      bool // because the one before was
}

// New returns a Client that has not connected yet. Sink may be set later by SetSink.
func New(cfg Config) *Client { return &Client{cfg: cfg, clock: make(chan struct{}, 1)} }

// SetSink says where pushed entries and bundles go. Call it before Run.
func (c *Client) SetSink(s Sink) { c.sink = s }

// ClockSet says that the clock was set or the machine slept: the node's SVID may be due for renewal now.
func (c *Client) ClockSet() {
	select {
	case c.clock <- struct{}{}:
	default:
	}
}

// awaitClock ends the session when the clock was set to where the node's SVID is not valid yet, or is due; but not before
// the bundle has an authority that is valid then: only the open feed can bring it.
func (c *Client) awaitClock(ctx context.Context, n *node, from, due time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.clock:
			now := c.cfg.Now()
			valid := func(a *x509.Certificate) bool { return !now.Before(a.NotBefore) && now.Before(a.NotAfter) }
			if (now.Before(from) || !now.Before(due)) && slices.ContainsFunc(n.bundle.X509Authorities(), valid) {
				c.due()
			}
		}
	}
}

// Connected reports whether the feed is open now.
func (c *Client) Connected() bool { return c.connected.Load() }

// Identity returns the node's SPIFFE ID and when its SVID ends; ok is false before attestation.
func (c *Client) Identity() (id spiffeid.ID, notAfter time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node == nil {
		return spiffeid.ID{}, time.Time{}, false
	}
	return c.node.svid.ID, c.node.svid.Certificates[0].NotAfter, true
}

// Run keeps the conversation going until ctx ends, or returns an error that trying again
// would not cure (ErrBanned, ErrNotAdmitted).
func (c *Client) Run(ctx context.Context) error {
	c.load()
	faults := backoff{first: 250 * time.Millisecond, most: 10 * time.Second}
	again := backoff{most: 10 * time.Second}
	out := newOutside()
	for ctx.Err() == nil {
		began := c.cfg.Now()
		err := c.session(ctx, &faults)
		if c.connected.Swap(false) {
			out.told = ""
		}
		if c.cfg.Now().Sub(began) > calm {
			again.reset()
			out.back.reset()
		}
		var s *standingError
		var d time.Duration
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrBanned), errors.Is(err, ErrNotAdmitted) && !c.returns:
			c.forget()
			return err
		case errors.As(err, &s), errors.Is(err, ErrNotAdmitted):
			d = c.refused(&out, err)
		case errors.Is(err, errReattest):
			d = again.next()
			c.cfg.Logger.Info("attesting again", "reason", err, "in", d.Round(time.Millisecond))
			c.forget()
		case err != nil:
			d = faults.next()
			c.cfg.Logger.Warn("no conversation with the server, trying again; workloads keep the SVIDs they have", "in", d.Round(time.Millisecond), "error", err)
		}
		sleep(ctx, d)
	}
	return nil
}

// session attests if need be, then follows the feed and answers the server's questions until
// either breaks or the node's SVID is due for renewal. A nil error means: go on with a new connection.
func (c *Client) session(ctx context.Context, back *backoff) error {
	n, err := c.identity(ctx)
	if err != nil {
		return err
	}
	conn, err := c.dialNode(n)
	if err != nil {
		return err
	}
	c.setConn(conn)
	if err := c.postStatus(ctx, n, conn); err != nil {
		return err
	}

	leaf := n.svid.Certificates[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	due := leaf.NotBefore.Add(life/2 - time.Duration(rand.Int64N(int64(life/10)+1)))
	untilDue, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.due = func() { cancel(errRenewalDue) }
	timer := time.AfterFunc(max(due.Sub(c.cfg.Now()), 0), c.due)
	defer timer.Stop()

	group, streams := errgroup.WithContext(untilDue)
	group.Go(func() error { return c.follow(streams, conn, back) })
	group.Go(func() error { c.awaitClock(streams, n, leaf.NotBefore, due); return nil })
	if r, ok := c.cfg.Attestor.(Requoter); ok {
		group.Go(func() error { return c.requote(streams, n, conn, r) })
	}
	err = group.Wait()
	if errors.Is(context.Cause(untilDue), errRenewalDue) {
		return c.renew(ctx, n, conn)
	}
	return err
}

var errRenewalDue = errors.New("the node's SVID is due for renewal")

// identity returns the node's identity, attesting when there is none that is valid.
func (c *Client) identity(ctx context.Context) (*node, error) {
	c.mu.Lock()
	n := c.node
	c.mu.Unlock()
	if n != nil {
		leaf, now := n.svid.Certificates[0], c.cfg.Now()
		if now.Before(leaf.NotAfter) && !now.Before(leaf.NotBefore) {
			return n, nil
		}
	}
	n, err := c.attest(ctx)
	if err != nil {
		return nil, err
	}
	return n, c.adopt(n)
}

// renew replaces the node's SVID: by a fresh attestation where the attestor can, else by RenewAgent.
func (c *Client) renew(ctx context.Context, n *node, conn *grpc.ClientConn) error {
	var next *node
	var err error
	if n.reattestable {
		next, err = c.attest(ctx)
	} else {
		next, err = c.renewAgent(ctx, n, conn)
	}
	if err != nil {
		return fmt.Errorf("renew the node's SVID: %w", err)
	}
	next.renewed = n.tainted
	return c.adopt(next)
}

func (c *Client) adopt(n *node) error {
	c.mu.Lock()
	c.node = n
	c.mu.Unlock()
	c.returns = n.reattestable
	c.cfg.Logger.Info("node has an identity", "spiffe_id", n.svid.ID, "valid_until", n.svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339))
	return c.save(n)
}

// forget gives up the node's identity; what authenticates the server is kept.
func (c *Client) forget() {
	c.mu.Lock()
	n := c.node
	c.node = nil
	c.mu.Unlock()
	if n != nil {
		c.bootstrapAlso(n.bundle.Clone())
	}
	c.setConn(nil)
	c.unsave()
}

func (c *Client) setConn(conn *grpc.ClientConn) {
	c.mu.Lock()
	old := c.conn
	c.conn = conn
	c.spire.Store(false) // until it shows
	c.mu.Unlock()
	if old != nil {
		// Signing calls under way on the old connection get a moment to end.
		time.AfterFunc(30*time.Second, func() { old.Close() })
	}
}

// backoff grows from first to most, with jitter. Without first, the first step is no time.
type backoff struct{ first, most, d time.Duration }

func (b *backoff) next() time.Duration {
	d := b.d
	if d == 0 {
		d = b.first
	}
	b.d = min(max(d*8/5, 250*time.Millisecond), b.most)
	return d*9/10 + time.Duration(rand.Int64N(int64(d)/5+1))
}

func (b *backoff) reset() { b.d = 0 }

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
