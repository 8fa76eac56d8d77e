// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/tests/soak/fleet"
)

// agent is a simulated agent: what it was told and nothing else.
type agent struct {
	w      *world
	name   string
	device *tls.Certificate // attests by x509pop; nil: by join tokens
	polls  bool             // as SPIRE's agents do; no feed
	slow   bool             // puts a bundle to use up to a second late

	mu       sync.Mutex
	node     *fleet.Node // nil: it has to attest
	banned   bool        // it was told so, and rests until it is evicted
	conn     *grpc.ClientConn
	failures int  // since a feed or a poll worked
	streams  int  // how many feeds it has opened
	open     bool // the last one has brought its first message and has not ended
	view
	state []byte // for resume
}

// view is what an agent goes by. Nobody changes a bundle or an entry in it.
type view struct {
	entries  map[string]*types.Entry
	bundle   *types.Bundle
	foreign  map[string]*types.Bundle
	revision int64
}

func (a *agent) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.attest(ctx)
		if err == nil {
			err = a.serve(ctx)
		}
		if !a.isBanned(err) {
			a.consider(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(50+rand.IntN(150)) * time.Millisecond):
		}
	}
}

// consider decides whether the agent has to begin anew after an error.
func (a *agent) consider(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures++
	switch {
	case status.Code(err) == codes.PermissionDenied: // evicted, expired or not active
		a.node = nil
	case a.node != nil && time.Now().After(a.node.Cert.Leaf.NotAfter):
		a.w.count("SVIDs of agents that expired", 1)
		a.node = nil
	case a.failures > 10 && strings.Contains(err.Error(), "authentication handshake failed"):
		// It was away while an authority was published and came to sign. An operator would start it again with a new bundle.
		a.w.count("agents that missed a rotation and began anew", 1)
		a.node, a.bundle, a.failures = nil, nil, 0
	}
}

func (a *agent) isBanned(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok && p.Reason == types.PermissionDeniedDetails_AGENT_BANNED {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.banned = a.node != nil
			return a.banned
		}
	}
	return false
}

// roots are those that the agent trusts at this moment.
func (a *agent) roots() *x509bundle.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := fleet.Roots(a.bundle)
	if err != nil {
		a.w.violation("%s has a bundle that can not be read: %v", a.name, err)
	}
	return b
}

// attest sees to it that the agent has an SVID that is good for a while.
func (a *agent) attest(ctx context.Context) error {
	for a.resting() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	a.mu.Lock()
	node := a.node
	a.mu.Unlock()
	if node != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s := a.w.anyServer()
	if err := a.bootstrap(ctx, s); err != nil {
		return err
	}
	conn, err := fleet.Dial(s.Address, nil, a.roots)
	if err != nil {
		return err
	}
	defer conn.Close()
	return a.adopt(a.prove(ctx, conn, s))
}

func (a *agent) resting() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.banned
}

func (a *agent) bootstrap(ctx context.Context, s *fleet.Server) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bundle != nil {
		return nil
	}
	b, err := bundlev1.NewBundleClient(s.Admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err == nil {
		a.bundle = b
	}
	return err
}

func (a *agent) prove(ctx context.Context, conn *grpc.ClientConn, s *fleet.Server) (*fleet.Node, error) {
	if a.device != nil {
		return fleet.Prove(ctx, conn, a.device)
	}
	token, err := fleet.NewToken(ctx, s.Admin, nil)
	if err != nil {
		return nil, err
	}
	return fleet.Join(ctx, conn, token)
}

func (a *agent) adopt(node *fleet.Node, err error) error {
	if err != nil {
		return err
	}
	a.w.count("SVIDs of agents", 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node != nil && a.node.ID.Path != node.ID.Path {
		a.entries, a.state = nil, nil
	}
	a.node = node
	return nil
}

// serve does an agent's work over one connection, until it breaks, or the SVID is replaced.
func (a *agent) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	node := a.node
	a.mu.Unlock()
	s := a.w.anyServer()
	conn, err := fleet.Dial(s.Address, node.Cert, a.roots)
	if err != nil {
		return err
	}
	defer conn.Close()
	a.mu.Lock()
	a.conn = conn
	a.streams++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.open = false
		a.mu.Unlock()
	}()
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		if a.renewInTime(ctx, conn, node) {
			cancel()
		}
	})
	work.Go(func() { a.sign(ctx, conn) })
	if a.polls {
		return a.poll(ctx, conn)
	}
	return a.watch(ctx, conn)
}

// renewInTime replaces the SVID at half its life, or when its authority is tainted.
func (a *agent) renewInTime(ctx context.Context, conn *grpc.ClientConn, node *fleet.Node) bool {
	half := node.Cert.Leaf.NotBefore.Add(node.Cert.Leaf.NotAfter.Sub(node.Cert.Leaf.NotBefore) / 2)
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if time.Now().Before(half) && !a.tainted(node) {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		next, err := fleet.Renew(call, conn)
		if a.device != nil {
			next, err = fleet.Prove(call, conn, a.device)
		}
		cancel()
		if a.adopt(next, err) == nil {
			a.w.count("renewals of agents", 1)
			return true
		}
	}
}

func (a *agent) tainted(node *fleet.Node) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.bundle.X509Authorities, func(c *types.X509Certificate) bool {
		return c.Tainted && keyID(c.Asn1) == string(node.Cert.Leaf.AuthorityKeyId)
	})
}

// watch follows the feed.
func (a *agent) watch(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := nodev1.NewNodeClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	first := &nodev1.WatchRequest{Resume: a.state, BundleSequence: a.bundle.SequenceNumber}
	a.mu.Unlock()
	_ = stream.Send(first) // Recv says why it failed
	for began := false; ; began = true {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if a.slow && resp.Bundle != nil && began {
			pause(ctx, rand.N(time.Second))
		}
		if err := a.apply(resp, !began); err != nil {
			return err
		}
		if resp.Bundle != nil {
			_ = stream.Send(&nodev1.WatchRequest{BundleSequence: resp.Bundle.SequenceNumber})
		}
	}
}

// apply does what proto/node says of WatchResponse.
func (a *agent) apply(r *nodev1.WatchResponse, first bool) error {
	a.w.count("messages of feeds", 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Full {
		a.entries = map[string]*types.Entry{}
	} else if first {
		a.w.count("feeds resumed", 1)
	}
	if a.entries == nil || first && r.Bundle == nil {
		return fmt.Errorf("the first message is not what it must be: %v", a.w.violation("%s: a first message without entries or bundle", a.name))
	}
	for _, e := range r.Entries {
		a.entries[e.Id] = e
	}
	for _, id := range r.Removed {
		delete(a.entries, id)
	}
	if first {
		a.foreign = map[string]*types.Bundle{}
	} else if r.Revision != 0 && r.Revision < a.revision { // 0: it is about bundles only
		a.w.violation("%s: revision %d after %d", a.name, r.Revision, a.revision)
	}
	for _, b := range r.Federated {
		a.foreign[b.TrustDomain] = b
	}
	for _, td := range r.FederatedRemoved {
		delete(a.foreign, td)
	}
	if r.Bundle != nil {
		a.take(r.Bundle)
	}
	if len(r.State) > 0 {
		a.state = r.State
	}
	if first || r.Revision != 0 {
		a.revision = r.Revision
	}
	a.open, a.failures = true, 0
	return nil
}

func (a *agent) take(b *types.Bundle) {
	if b.SequenceNumber < a.bundle.SequenceNumber {
		a.w.violation("%s: bundle %d after %d", a.name, b.SequenceNumber, a.bundle.SequenceNumber)
	}
	a.bundle = b
}

// poll asks like SPIRE's agents, every second.
func (a *agent) poll(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return err
		}
		entries, err := syncEntries(ctx, conn)
		if err != nil {
			return err
		}
		foreign, err := fetchForeign(ctx, conn, entries)
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.take(b)
		a.entries, a.foreign = entries, foreign
		a.open, a.failures = true, 0
		a.mu.Unlock()
		a.w.count("polls", 1)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func keyID(der []byte) string { return string(parsed(der).SubjectKeyId) }
