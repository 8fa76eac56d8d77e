// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/tests/soak/fleet"
)

// member of a crowd: an attested agent, its one entry, and its feed, which it opens again whenever
// it breaks.
type member struct {
	node  *fleet.Node
	entry string
	told  chan time.Time // of changes of its entry
	state []byte         // for resume
}

// crowd of agents with one server.
type crowd struct {
	address string
	admin   grpc.ClientConnInterface
	process fleet.Process
	roots   atomic.Pointer[x509bundle.Bundle]
	all     []*member
	bundle  *types.Bundle // as it was at the end
	open    atomic.Int64  // feeds that have brought their first message
	// Why a feed could not be opened: the last reason, and how often.
	failed   atomic.Pointer[error]
	failures atomic.Int64

	mu       sync.Mutex
	sequence uint64 // of the bundle that is waited for
	told     []time.Time
}

// atATime is how many attest or connect at once.
const atATime = 64

// gather attests n agents by join tokens through the API: each has a key and an SVID of its own. They
// share a connection for that; feeds have one each.
func (c *crowd) gather(ctx context.Context, n int) error {
	if err := c.learn(ctx); err != nil {
		return err
	}
	conn, err := fleet.Dial(c.address, nil, c.roots.Load)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.all = make([]*member, n)
	var group errgroup.Group
	group.SetLimit(atATime)
	for i := range c.all {
		group.Go(func() error {
			token, err := fleet.NewToken(ctx, c.admin, nil)
			if err != nil {
				return err
			}
			node, err := fleet.Join(ctx, conn, token)
			c.all[i] = &member{node: node, told: make(chan time.Time, 16)}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("attest: %w", err)
	}
	return c.register(ctx)
}

func (c *crowd) learn(ctx context.Context) error {
	b, err := bundlev1.NewBundleClient(c.admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return err
	}
	roots, err := fleet.Roots(b)
	c.roots.Store(roots)
	return err
}

// register makes an entry for each agent.
func (c *crowd) register(ctx context.Context) error {
	for batch := range slices.Chunk(c.all, 100) {
		req := &entryv1.BatchCreateEntryRequest{}
		for i, m := range batch {
			req.Entries = append(req.Entries, &types.Entry{
				ParentId: m.node.ID, SpiffeId: &types.SPIFFEID{TrustDomain: fleet.TrustDomain, Path: fmt.Sprintf("/service/%d", i)},
				Selectors: []*types.Selector{{Type: "unix", Value: "uid:1000"}},
			})
		}
		resp, err := entryv1.NewEntryClient(c.admin).BatchCreateEntry(ctx, req)
		if err != nil {
			return err
		}
		for i, r := range resp.Results {
			if r.Status.Code != 0 {
				return fmt.Errorf("create an entry: %s", r.Status.Message)
			}
			batch[i].entry = r.Entry.Id
		}
	}
	return nil
}

// connect opens the feeds of some and returns when all have brought their first message.
func (c *crowd) connect(ctx context.Context, some []*member) error {
	want := c.open.Load() + int64(len(some))
	slots := make(chan struct{}, atATime)
	for _, m := range some {
		slots <- struct{}{}
		go c.live(ctx, m, sync.OnceFunc(func() { <-slots }))
	}
	return c.await(want, 10*time.Minute)
}

func (c *crowd) await(open int64, atMost time.Duration) error {
	for deadline := time.Now().Add(atMost); c.open.Load() < open; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			err := fmt.Errorf("%d of %d feeds are open after %s; %d attempts failed", c.open.Load(), open, atMost, c.failures.Load())
			if why := c.failed.Load(); why != nil {
				err = fmt.Errorf("%w, the last one: %w", err, *why)
			}
			return err
		}
	}
	return nil
}

// live keeps the feed open, with pauses like an agent's (agent/upstream) after an error.
func (c *crowd) live(ctx context.Context, m *member, began func()) {
	const first, most = 250 * time.Millisecond, 10 * time.Second
	pause := first
	for ctx.Err() == nil {
		if c.follow(ctx, m, began) {
			pause = first
		}
		began() // or failed
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, most)
	}
}

// follow reads one feed until it ends and reports whether it was open.
func (c *crowd) follow(ctx context.Context, m *member, began func()) (opened bool) {
	conn, err := fleet.Dial(c.address, m.node.Cert, c.roots.Load)
	if err != nil {
		return false
	}
	defer conn.Close()
	stream, err := nodev1.NewNodeClient(conn).Watch(ctx)
	if err != nil {
		c.fail(err)
		return false
	}
	_ = stream.Send(&nodev1.WatchRequest{Resume: m.state}) // Recv says why it failed
	for {
		msg, err := stream.Recv()
		if err != nil {
			if opened {
				c.open.Add(-1)
			} else {
				c.fail(err)
			}
			return opened
		}
		now := time.Now()
		if len(msg.State) > 0 {
			m.state = msg.State
		}
		if !opened {
			opened = true
			c.open.Add(1)
			began()
		} else if len(msg.Entries) > 0 {
			m.told <- now
		}
		if msg.Bundle != nil {
			c.arrived(msg.Bundle.SequenceNumber, now)
			_ = stream.Send(&nodev1.WatchRequest{BundleSequence: msg.Bundle.SequenceNumber})
		}
	}
}

func (c *crowd) fail(err error) {
	c.failures.Add(1)
	c.failed.Store(&err)
}

func (c *crowd) arrived(sequence uint64, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sequence == c.sequence {
		c.told = append(c.told, now)
	}
}

// one changes the entry of one of the first n agents, and again, and says when that one was told.
func (c *crowd) one(ctx context.Context, n, times int) (all sample, err error) {
	for i := range times {
		m := c.all[rand.IntN(n)]
		began := time.Now()
		_, err := entryv1.NewEntryClient(c.admin).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{{Id: m.entry, Hint: fmt.Sprint(i)}}, InputMask: &types.EntryMask{Hint: true}})
		if err != nil {
			return nil, err
		}
		select {
		case at := <-m.told:
			all = append(all, at.Sub(began))
		case <-time.After(time.Minute):
			return nil, errors.New("an agent was not told of its entry")
		}
	}
	return all, nil
}

// everybody changes the bundle, by a key for tokens, and again, and says when each agent was told.
func (c *crowd) everybody(ctx context.Context, times int) (all sample, err error) {
	bundles := bundlev1.NewBundleClient(c.admin)
	for range times {
		b, err := bundles.GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.sequence, c.told = b.SequenceNumber+1, nil
		c.mu.Unlock()
		key, err := newAuthority()
		if err != nil {
			return nil, err
		}
		want, began := int(c.open.Load()), time.Now()
		if _, err := bundles.AppendBundle(ctx, &bundlev1.AppendBundleRequest{JwtAuthorities: []*types.JWTKey{key}}); err != nil {
			return nil, err
		}
		for ; len(c.arrivals()) < want; time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				return nil, fmt.Errorf("%d of %d agents were told of the bundle", len(c.arrivals()), want)
			}
		}
		for _, at := range c.arrivals() {
			all = append(all, at.Sub(began))
		}
	}
	return all, nil
}

func (c *crowd) arrivals() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.told
}
