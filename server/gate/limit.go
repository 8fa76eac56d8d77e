// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
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
		return later(delay, fmt.Sprintf("too many calls: the next may be made in %s, after the deadline of this one; call later", delay.Round(time.Millisecond)))
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

const (
	agentService = "/spire.api.server.agent.v1.Agent/"
	svidService  = "/spire.api.server.svid.v1.SVID/"
)

// signs are the methods that cost a signature, or several.
var signs = map[string]bool{
	agentService + "AttestAgent": true, agentService + "RenewAgent": true,
	svidService + "BatchNewX509SVID": true, svidService + "NewJWTSVID": true, svidService + "BatchNewWITSVID": true, svidService + "NewDownstreamX509CA": true,
	"/assay.node.v1.Node/SignX509SVID": true, "/assay.node.v1.Node/SignJWTSVID": true, "/assay.node.v1.Node/SignWITSVID": true,
}

func limitsOf(l Limits, now func() time.Time) map[string]*buckets {
	out := map[string]*buckets{agentService + "PostStatus": newBuckets(reports, now)}
	if l.Signatures > 0 {
		signatures := newBuckets(l.Signatures, now)
		for method := range signs {
			out[method] = signatures
		}
		out["/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority"] = signatures
		out["/spire.api.server.bundle.v1.Bundle/PublishWITAuthority"] = signatures
	}
	delete(out, agentService+"AttestAgent")
	if l.Attestations > 0 {
		out[agentService+"AttestAgent"] = newBuckets(l.Attestations, now)
	}
	return out
}

// limit holds a call back that comes too early: for this caller, or for all that the server can
// sign. n is how many calls it stands for.
func (g *Gate) limit(ctx context.Context, method string, n int) error {
	c := CallerOf(ctx)
	b, signs := g.limits[method], signs[method]
	if c.local || b == nil && !signs {
		return nil
	}
	who := c.ID.String()
	if c.Cert == nil {
		p, _ := peer.FromContext(ctx)
		who = neighbourhood(p.Addr.String())
	}
	if b != nil {
		if err := b.wait(ctx, who, n); err != nil {
			return err
		}
	}
	if signs {
		return g.capacity.wait(ctx, who, n)
	}
	return nil
}

// Signed tells the gate how long a signature took, by which it knows how many can be made.
func (g *Gate) Signed(took time.Duration) { g.capacity.signed(took) }

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
