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
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/servers"
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
	// Servers are the trust domain's servers.
	Servers     *servers.Set
	TrustDomain spiffeid.TrustDomain
	// Bootstrap gets what authenticates the server the first time, and later where Rebootstrap says so.
	Bootstrap   Bootstrap
	Rebootstrap Rebootstrap
	Attestor    Attestor
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

	life *life.Life

	mu      sync.Mutex
	node    *node                // nil before the first attestation
	conn    *servers.Conn        // mTLS, of node
	kept    *spiffebundle.Bundle // authenticates the server while there is no node
	strange time.Time            // since when servers show certificates that no authority of ours signed
	cut     func(error)          // ends the session

	clock   chan struct{} // holds one if the clock was set and no session has looked since
	spire   atomic.Bool   // conn's server has SPIRE's services only
	late    atomic.Int32  // signing calls in a row that were not answered in time
	spread  time.Duration // after that, to twice that, an agent chooses its server anew
	tooSlow time.Duration // for the first word of a feed

	// Run's own:
	returns   bool   // the node was admitted in this run and can attest again
	again     bool   // the node can attest again, as far as is known
	proved    bool   // kept is of a server that was authenticated
	word      string // the operator's, by which kept was got
	server    string // address of the server that was called last
	due       func() // ends the session so that the node's SVID is renewed
	feedState []byte // names the entries that the sink has, for the server

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
func New(cfg Config) *Client {
	return &Client{cfg: cfg, life: life.New(cfg.Now), clock: make(chan struct{}, 1), spread: spreadAfter, tooSlow: firstWord}
}

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
func (c *Client) Connected() bool { return c.life.Status().State == life.Following }

// State tells how the conversation is.
func (c *Client) State() life.Status { return c.life.Status() }

// Degraded tells what the server that was heard last can not do; empty for a server of ours.
func (c *Client) Degraded() []string {
	if !c.spire.Load() {
		return nil
	}
	return spireLacks
}

// tell has the machine take an event; one that can not be there is a fault of this package.
func (c *Client) tell(ok bool, what string) {
	if !ok {
		c.cfg.Logger.Error("the conversation with the server is in a state that can not be", "state", c.life.Status().State, "event", what)
	}
}

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
// would not cure (ErrBanned, ErrNotAdmitted, ErrNoReturn).
func (c *Client) Run(ctx context.Context) error {
	c.load()
	faults := backoff{first: 250 * time.Millisecond, most: 10 * time.Second}
	again := backoff{most: 10 * time.Second}
	out := newOutside()
	for ctx.Err() == nil {
		began := c.cfg.Now()
		err := c.session(ctx, &faults)
		if c.Connected() {
			out.told = ""
		}
		if c.cfg.Now().Sub(began) > calm {
			again.reset()
			out.back.reset()
		}
		var s *standingError
		var d time.Duration
		switch {
		case ctx.Err() != nil: // whatever it broke
		case errors.Is(err, ErrBanned):
			c.life.Failed(life.Ban, err.Error(), 0)
			c.forget()
			return err
		case errors.Is(err, ErrNotAdmitted) && !c.returns, errors.Is(err, ErrNoReturn):
			c.life.Failed(life.Refuse, err.Error(), 0)
			c.forget()
			return err
		case errors.As(err, &s), errors.Is(err, ErrNotAdmitted):
			d = c.refused(&out, err)
		case errors.Is(err, errReattest):
			d = again.next()
			c.life.Failed(life.Again, err.Error(), d)
			c.cfg.Logger.Info("attesting again", "reason", err, "in", d.Round(time.Millisecond))
			c.forget()
		case err != nil:
			d = faults.next()
			c.lost(err, d)
		}
		sleep(ctx, d)
	}
	c.life.Take(life.Stop)
	return nil
}

// lost is after a fault: the next try, after d, goes to another server if there is one.
func (c *Client) lost(err error, d time.Duration) {
	c.life.Failed(life.Lose, err.Error(), d)
	if c.server != "" {
		c.cfg.Servers.Avoid(c.server)
	}
	c.mu.Lock()
	if !c.strange.IsZero() && !c.proved {
		c.kept = nil // it was got from elsewhere and vouches for nobody: once more, it may be corrected
	}
	c.mu.Unlock()
	c.cfg.Logger.Warn("no conversation with the server, trying again; workloads keep the SVIDs they have", "server", c.server, "in", d.Round(time.Millisecond), "error", err)
}

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
	b, err := c.authorities(ctx)
	if err != nil {
		return nil, err
	}
	if n, err = c.attest(ctx, b); err != nil {
		return nil, err
	}
	return n, c.adopt(n)
}

// renew replaces the node's SVID: by a fresh attestation where the attestor can, else by RenewAgent.
func (c *Client) renew(ctx context.Context, n *node, conn *grpc.ClientConn) error {
	var next *node
	var err error
	if n.reattestable {
		c.cfg.Servers.Prefer(c.server)
		next, err = c.attest(ctx, n.bundle)
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
	c.returns, c.again, c.proved = n.reattestable, n.reattestable, true
	if c.cfg.Rebootstrap.Mode == Always && !n.reattestable {
		return ErrNoReturn
	}
	c.cfg.Logger.Info("node has an identity", "spiffe_id", n.svid.ID, "valid_until", n.svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339))
	return c.save(n)
}

// forget gives up the node's identity; what authenticates the server is kept.
func (c *Client) forget() {
	c.mu.Lock()
	if c.node != nil {
		c.kept = c.node.bundle.Clone()
	}
	c.node = nil
	c.mu.Unlock()
	c.setConn(nil)
	c.unsave()
}

func (c *Client) setConn(conn *servers.Conn) {
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
