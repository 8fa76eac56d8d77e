// SPDX-License-Identifier: Apache-2.0

// Package ca signs. It is the only package that uses the private keys of the trust domain.
//
// Each server has authorities of its own, of three kinds (X509, JWT, WIT). Their keys are with its
// key manager; what is public about them is in the store: b/… is the trust bundle of all servers
// (package bundle), j/<server id> the journal of one server's authorities, s/<server id> how much of
// the bundle a living server and its agents have seen. One state machine serves all kinds:
//
//	            ┌─ key made ─▶ journal and bundle, ─▶ seen by all ─▶ journal ─▶ signs
//	            │  (durable)   one transaction        who listen
//	half of the active one's life left:               a sixth left:
//	prepare                                           activate; the former becomes old
//
// An old authority signs nothing and stays in the bundle, where it can be tainted and then revoked,
// until the next is prepared; a day after it expired it is pruned from the bundle.
package ca

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
	"github.com/assay-id/assay/server/keys"
)

// Store is what the CA needs of server/store.
type Store interface {
	bundle.Store
	Age() time.Duration
}

// Config of a CA. Zero values mean the default that is named.
type Config struct {
	// Dir holds the server's id, and the private keys if Keys is nil; made with mode 0700.
	Dir string
	// Keys holds the private keys.
	Keys        keys.Manager
	TrustDomain spiffeid.TrustDomain
	Store       Store
	// Upstream certifies our X.509 authorities; nil: they are self-signed.
	Upstream Upstream
	// TTL of an authority, 24 h.
	TTL time.Duration
	// X509SVIDTTL of workloads whose entry does not say, and of the server itself, 1 h.
	X509SVIDTTL time.Duration
	// AgentTTL of agents' SVIDs, X509SVIDTTL.
	AgentTTL time.Duration
	// JWTTTL of JWT-SVIDs, 5 min.
	JWTTTL time.Duration
	// JWTIssuer is the `iss` of JWT-SVIDs; none without it.
	JWTIssuer string
	// Types of the authorities' keys, ec-p256.
	X509KeyType, JWTKeyType, WITKeyType keys.Type
	// Subject of authorities, C=US,O=SPIFFE; SVIDSubject of SVIDs, C=US,O=SPIRE.
	Subject, SVIDSubject pkix.Name
	// NameConstraints binds X.509 authorities to the trust domain (mint.Shape).
	NameConstraints bool
	// CRLs is the URL below which everybody can read revocation lists (mint.Shape); SVIDs name it.
	CRLs string
	// MaxAge is how long signing goes on while the store can not be reached, 1 h.
	MaxAge time.Duration
	// Acked returns who is connected to this server and has not yet shown that he has the
	// bundle of this sequence number; nil: nobody is ever waited for.
	Acked func(sequence uint64) (waiting []string)
	// AckBound is how long a prepared authority waits for them before it may sign, 1 min.
	AckBound time.Duration
	Logger   *slog.Logger
	Now      func() time.Time
}

// CA signs certificates and tokens, and keeps the trust bundle.
type CA struct {
	cfg      Config
	shape    mint.Shape
	serverID string
	bundle   *bundle.Replica
	peers    *bundle.Peers
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	due      chan struct{} // Rotate has something to do before its time

	// signing is what signs now: active, in the bundle, not tainted. Nil: nothing of that kind.
	signing [bundle.Kinds]atomic.Pointer[authority]

	op      sync.Mutex // one change of our authorities at a time; it guards what follows
	journal int64      // the store revision of our journal; 0: there is none
	unsure  bool       // a write failed, and the journal may be another than slots
	spare   [bundle.Kinds]*spare

	mu     sync.Mutex
	slots  [bundle.Kinds]slots
	latest Bundle
}

// Open finds this server's authorities again, makes those that it lacks, and returns when there is
// one of each kind that may sign.
func Open(ctx context.Context, cfg Config) (*CA, error) {
	cfg.setDefaults()
	c := &CA{cfg: cfg, shape: mint.Shape{TrustDomain: cfg.TrustDomain, Subject: cfg.Subject, SVIDSubject: cfg.SVIDSubject, CRLs: cfg.CRLs, NameConstraints: cfg.NameConstraints}, due: make(chan struct{}, 1)}
	if err := c.openDir(); err != nil {
		return nil, err
	}
	var err error
	if c.bundle, err = bundle.Open(ctx, cfg.Store, cfg.Logger, c.bundleChanged); err != nil {
		return nil, err
	}
	if c.peers, err = bundle.OpenPeers(ctx, cfg.Store, c.serverID, cfg.Acked, cfg.Logger); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.bundle.Follow(run) })
	c.wg.Go(func() { c.peers.Follow(run) })
	if err := c.recover(ctx); err != nil {
		c.Close()
		return nil, err
	}
	c.wg.Go(func() { c.peers.Tell(run, c.bundle) })
	if cfg.Upstream != nil {
		c.wg.Go(func() { c.followUpstream(run) })
	}
	if err := c.firstRotation(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (cfg *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.TTL, 24 * time.Hour}, {&cfg.X509SVIDTTL, time.Hour}, {&cfg.AgentTTL, cfg.X509SVIDTTL}, {&cfg.AgentTTL, time.Hour},
		{&cfg.JWTTTL, 5 * time.Minute}, {&cfg.MaxAge, time.Hour}, {&cfg.AckBound, time.Minute}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if len(cfg.Subject.ToRDNSequence()) == 0 {
		cfg.Subject = pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}}
	}
	if len(cfg.SVIDSubject.ToRDNSequence()) == 0 {
		cfg.SVIDSubject = pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}}
	}
	if cfg.Acked == nil {
		cfg.Acked = func(uint64) []string { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
}

// ServerID names this server among those of the trust domain: a UUID, made once.
func (c *CA) ServerID() string { return c.serverID }

// Bundle returns the present bundle and a channel that is closed when it changes.
func (c *CA) Bundle() (Bundle, <-chan struct{}) { return c.bundle.Bundle() }

// Close stops following the store. The key manager stays open if it was given.
func (c *CA) Close() {
	c.cancel()
	c.wg.Wait()
}

const (
	rotateEvery   = 10 * time.Second
	rotateTimeout = 10 * time.Second
	ackEvery      = 50 * time.Millisecond
	soon          = time.Second
)

// Run rotates the authorities until the context ends.
func (c *CA) Run(ctx context.Context) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.due:
		}
		once, cancel := context.WithTimeout(ctx, rotateTimeout)
		if err := c.Rotate(once); err != nil {
			c.cfg.Logger.Error("the CA can not rotate; trying again", "error", err)
		}
		cancel()
		if !c.ready() {
			time.AfterFunc(soon, c.rotateNow)
		}
	}
}

// firstRotation waits until something signs, which others may have to see first.
func (c *CA) firstRotation(ctx context.Context) error {
	for {
		if err := c.Rotate(ctx); err != nil {
			return err
		}
		if c.ready() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for those who must see the first authorities: %w", ctx.Err())
		case <-time.After(ackEvery):
		}
	}
}

func (c *CA) ready() bool {
	for k := range bundle.Kinds {
		if c.signing[k].Load() == nil {
			return false
		}
	}
	return true
}

func (c *CA) rotateNow() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

func (c *CA) bundleChanged(b Bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest = b
	c.chooseSigners()
}

// chooseSigners lets those sign that the bundle vouches for. The caller holds mu.
func (c *CA) chooseSigners() {
	for k := range bundle.Kinds {
		a := c.slots[k].current
		if a != nil && (a.key == nil || !c.latest.Vouches(a.anchor)) {
			a = nil
			c.rotateNow()
		}
		c.signing[k].Store(a)
	}
}
