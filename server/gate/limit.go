// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Limits are how often callers may call, per second; 0 is no limit. Who calls more often waits, up
// to his deadline, rather than being refused.
type Limits struct {
	// Attestations of one address (IPv6: of one /64).
	Attestations int
	// Signatures for one node: SVIDs of its workloads, and its own.
	Signatures int
}

// reports is how often one node may report about itself.
const reports = 10

// buckets are the token buckets of callers; a burst is a second's worth.
type buckets struct {
	perSecond int
	now       func() time.Time

	mu      sync.Mutex
	of      map[string]*rate.Limiter
	sweepAt int
}

const firstSweep = 1024

func newBuckets(perSecond int, now func() time.Time) *buckets {
	return &buckets{perSecond: perSecond, now: now, of: map[string]*rate.Limiter{}, sweepAt: firstSweep}
}

func (b *buckets) get(who string) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.of[who]
	if l == nil {
		if len(b.of) >= b.sweepAt {
			b.sweep()
		}
		l = rate.NewLimiter(rate.Limit(b.perSecond), b.perSecond)
		b.of[who] = l
	}
	return l
}

// sweep forgets those that are full: a new one would be the same.
func (b *buckets) sweep() {
	now := b.now()
	for who, l := range b.of {
		if l.TokensAt(now) >= float64(b.perSecond) {
			delete(b.of, who)
		}
	}
	b.sweepAt = max(firstSweep, 2*len(b.of))
}

// wait takes n tokens of the caller's bucket as soon as they are there.
func (b *buckets) wait(ctx context.Context, who string, n int) error {
	if n > b.perSecond {
		return status.Errorf(codes.ResourceExhausted, "rate (%d) exceeds burst size (%d)", n, b.perSecond)
	}
	now := b.now()
	r := b.get(who).ReserveN(now, n)
	delay := r.DelayFrom(now)
	if deadline, ok := ctx.Deadline(); ok && now.Add(delay).After(deadline) {
		r.CancelAt(now)
		return status.Errorf(codes.ResourceExhausted, "too many calls: the next may be made in %s, after the deadline of this one; call later", delay.Round(time.Millisecond))
	}
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		r.CancelAt(b.now())
		return status.FromContextError(ctx.Err()).Err()
	}
}

const svidService = "/spire.api.server.svid.v1.SVID/"

func limitsOf(l Limits, now func() time.Time) map[string]*buckets {
	out := map[string]*buckets{"/spire.api.server.agent.v1.Agent/PostStatus": newBuckets(reports, now)}
	if l.Attestations > 0 {
		out["/spire.api.server.agent.v1.Agent/AttestAgent"] = newBuckets(l.Attestations, now)
	}
	if l.Signatures == 0 {
		return out
	}
	signatures := newBuckets(l.Signatures, now)
	for _, method := range []string{
		"/spire.api.server.agent.v1.Agent/RenewAgent",
		svidService + "BatchNewX509SVID", svidService + "NewJWTSVID", svidService + "BatchNewWITSVID", svidService + "NewDownstreamX509CA",
		"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", "/spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
		"/assay.node.v1.Node/SignX509SVID", "/assay.node.v1.Node/SignJWTSVID", "/assay.node.v1.Node/SignWITSVID",
	} {
		out[method] = signatures
	}
	return out
}

// limit holds a call back that comes too early. n is how many calls it stands for.
func (g *Gate) limit(ctx context.Context, method string, n int) error {
	b, c := g.limits[method], CallerOf(ctx)
	switch {
	case b == nil || c.local:
		return nil
	case c.Cert != nil:
		return b.wait(ctx, c.ID.String(), n)
	}
	p, _ := peer.FromContext(ctx)
	return b.wait(ctx, neighbourhood(p.Addr.String()), n)
}

// neighbourhood is the address without the port; of IPv6 the /64, all of which one host may use.
func neighbourhood(hostPort string) string {
	a, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return hostPort
	}
	addr := a.Addr().Unmap().WithZone("")
	if addr.Is6() {
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr.String()
}
