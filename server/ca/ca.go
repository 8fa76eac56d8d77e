// SPDX-License-Identifier: Apache-2.0

// Package ca signs. It is the only package that touches the private keys of the trust domain.
//
// Each server has authorities of its own, on its disk; only certificates are shared, under
// b/x509/<subject key id> in the store, and the bundle is the union of all servers'. An
// authority lives like this:
//
//	half of the current one's life left   prepare: make the next one, publish it
//	a sixth left                          activate: sign with the next one
//	a day after it expired                prune it from the bundle
package ca

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

// Store is what the CA needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
	Age() time.Duration
}

// Config of a CA. Zero durations mean the default that is named.
type Config struct {
	// Dir holds the private keys; made with mode 0700.
	Dir         string
	TrustDomain spiffeid.TrustDomain
	Store       Store
	// TTL of an authority, 24 h.
	TTL time.Duration
	// X509SVIDTTL of workloads whose entry does not say, and of the server itself, 1 h.
	X509SVIDTTL time.Duration
	// AgentTTL of agents' SVIDs, X509SVIDTTL.
	AgentTTL time.Duration
	// Subject of authorities, C=US,O=SPIFFE; SVIDSubject of SVIDs, C=US,O=SPIRE.
	Subject, SVIDSubject pkix.Name
	// MaxAge is how long signing goes on while the store can not be reached, 1 h.
	MaxAge time.Duration
	Logger *slog.Logger
	Now    func() time.Time
}

// CA signs certificates and keeps the trust bundle.
type CA struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup

	preparing sync.Mutex // one change of the authorities at a time

	mu      sync.RWMutex
	slots   slots
	bundle  Bundle
	shown   int64 // the store revision of bundle
	changed chan struct{}
}

// Open loads the authorities, makes the first one if there is none, and publishes them.
func Open(ctx context.Context, cfg Config) (*CA, error) {
	cfg.setDefaults()
	c := &CA{cfg: cfg, changed: make(chan struct{})}
	var err error
	if c.slots, err = loadSlots(cfg.Dir, cfg.TrustDomain); err != nil {
		return nil, err
	}
	if err := c.rebuild(ctx); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.follow(run) })
	if err := c.Rotate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (cfg *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.TTL, 24 * time.Hour}, {&cfg.X509SVIDTTL, time.Hour}, {&cfg.AgentTTL, cfg.X509SVIDTTL}, {&cfg.AgentTTL, time.Hour}, {&cfg.MaxAge, time.Hour}} {
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
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
}

// Close stops following the store.
func (c *CA) Close() {
	c.cancel()
	c.wg.Wait()
}

const (
	rotateEvery   = 10 * time.Second
	maxPrepare    = 30 * 24 * time.Hour
	maxActivate   = 7 * 24 * time.Hour
	pruneAfter    = 24 * time.Hour
	rotateTimeout = 10 * time.Second
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
		}
		once, cancel := context.WithTimeout(ctx, rotateTimeout)
		if err := c.Rotate(once); err != nil {
			c.cfg.Logger.Error("the CA can not rotate; trying again", "error", err)
		}
		cancel()
	}
}

// Rotate does whatever is due now: publish, prepare, activate, prune.
func (c *CA) Rotate(ctx context.Context) error {
	c.preparing.Lock()
	defer c.preparing.Unlock()
	now := c.cfg.Now()
	s := c.current()
	if s.Current != nil && !now.Before(s.Current.cert.NotAfter) {
		s.Current = nil
	}
	if s.Next != nil && !now.Before(s.Next.cert.NotAfter) {
		s.Next = nil
	}
	if s.Next == nil && (s.Current == nil || s.Current.left(now) <= min(s.Current.life()/2, maxPrepare)) {
		next, err := c.newAuthority(now)
		if err != nil {
			return err
		}
		s.Next = next
		c.cfg.Logger.Info("prepared an X.509 authority", "authority_id", next.id(), "expires_at", next.cert.NotAfter)
	}
	if s != c.current() { // on disk first: a published authority must not be lost
		if err := saveSlots(c.cfg.Dir, s); err != nil {
			return err
		}
		c.set(s)
	}
	for _, a := range []*authority{s.Current, s.Next} {
		if err := c.publish(ctx, a); err != nil {
			return err
		}
	}
	if s.Next != nil && (s.Current == nil || s.Current.left(now) <= min(s.Current.life()/6, maxActivate)) {
		s = slots{Current: s.Next}
		if err := saveSlots(c.cfg.Dir, s); err != nil {
			return err
		}
		c.set(s)
		c.cfg.Logger.Info("activated an X.509 authority", "authority_id", s.Current.id(), "expires_at", s.Current.cert.NotAfter)
	}
	return c.prune(ctx, now)
}

func (c *CA) current() slots {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.slots
}

func (c *CA) set(s slots) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots = s
}

// ErrStale refuses to sign because nobody knows what has been revoked meanwhile.
var ErrStale = errors.New("the store has not been reachable for too long")

// fresh checks that the replicas that a signature rests on are young enough.
func (c *CA) fresh() error {
	if age := c.cfg.Store.Age(); age > c.cfg.MaxAge {
		return fmt.Errorf("%w: %s, and signing is allowed for %s; repair the store (see server status)", ErrStale, age.Round(time.Second), c.cfg.MaxAge)
	}
	return nil
}
