// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// used is the part of what the processors could sign that is signed: the rest of the server needs some.
	used = 0.9
	// atOnce is how much of a second's signatures may be begun together.
	atOnce = 0.1
)

// capacity is one token bucket for all callers, filled as fast as this server can sign. Who comes when it is
// empty waits: callers in turn, so that one who asks for much delays nobody else, and none for longer
// than is of use to him.
type capacity struct {
	processors int

	mu     sync.Mutex
	mean   time.Duration // of a signature; 0: none was made yet, and nobody waits
	tokens float64       // below 0 after a large batch
	at     time.Time     // when tokens was true
	queues map[string][]*turn
	ring   []string // who wait; the first is next
	calls  int      // that wait
	behind int      // signatures that they are for
	timer  *time.Timer
}

// turn is one call that waits.
type turn struct {
	signatures int
	come       chan struct{}
}

// signed measures one signature. The mean falls at once and rises slowly: most of what makes one
// signature longer than another is waiting for a processor.
func (c *capacity) signed(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mean == 0:
		c.mean, c.at = max(took, 1), time.Now()
	case took < c.mean:
		c.mean = max(1, c.mean-(c.mean-took)/4)
	default:
		c.mean += (took - c.mean) / 64
	}
}

// wait lets a call of someone for n signatures pass when it is its turn. ResourceExhausted, with a
// RetryInfo: it would be too late.
func (c *capacity) wait(ctx context.Context, who string, n int) error {
	c.mu.Lock()
	if c.fill(); c.mean == 0 || len(c.ring) == 0 && c.tokens > 0 {
		c.tokens -= float64(n)
		c.mu.Unlock()
		return nil
	}
	delay := c.delay(who)
	if deadline, ok := ctx.Deadline(); delay > longestQueue || ok && time.Until(deadline) < delay {
		c.mu.Unlock()
		return later(delay, "the server signs as fast as it can, and this would not be signed in time; call again in "+delay.Round(time.Millisecond).String())
	}
	t := &turn{n, make(chan struct{})}
	if len(c.queues[who]) == 0 {
		c.ring = append(c.ring, who)
	}
	if c.queues == nil {
		c.queues = map[string][]*turn{}
	}
	c.queues[who] = append(c.queues[who], t)
	c.calls++
	c.behind += n
	c.next()
	c.mu.Unlock()
	select {
	case <-t.come:
		return nil
	case <-ctx.Done():
		c.forget(t)
		return status.FromContextError(ctx.Err()).Err()
	}
}

// forget lets the turn come without taking a token.
func (c *capacity) forget(t *turn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-t.come:
	default:
		c.behind -= t.signatures
		t.signatures = 0
	}
}

func (c *capacity) rate() float64 {
	return used * float64(c.processors) / c.mean.Seconds()
}

// fill brings tokens to the present.
func (c *capacity) fill() {
	if c.mean == 0 {
		return
	}
	now := time.Now()
	c.tokens = min(max(1, atOnce*c.rate()), c.tokens+now.Sub(c.at).Seconds()*c.rate())
	c.at = now
}

// delay until someone's next call would have its turn: no longer than until all who wait have had
// theirs, and no longer than as many rounds as he has calls that wait.
func (c *capacity) delay(who string) time.Duration {
	ahead := float64(c.behind)
	if rounds := len(c.queues[who]) + 1; c.calls > 0 {
		ahead = min(ahead, float64(rounds*len(c.ring)*c.behind)/float64(c.calls))
	}
	return time.Duration((ahead + max(0, -c.tokens) + 1) / c.rate() * float64(time.Second))
}

// next gives turns to those who wait, one of each caller in a round, and comes again when there are tokens.
func (c *capacity) next() {
	c.fill()
	for len(c.ring) > 0 && c.tokens > 0 {
		who := c.ring[0]
		t := c.queues[who][0]
		c.tokens -= float64(t.signatures)
		c.calls--
		c.behind -= t.signatures
		close(t.come)
		c.ring = c.ring[1:]
		if c.queues[who] = c.queues[who][1:]; len(c.queues[who]) > 0 {
			c.ring = append(c.ring, who)
		} else {
			delete(c.queues, who)
		}
	}
	if len(c.ring) == 0 || c.timer != nil {
		return
	}
	c.timer = time.AfterFunc(time.Duration((0.001-c.tokens)/c.rate()*float64(time.Second))+time.Millisecond, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.timer = nil
		c.next()
	})
}

// later is the answer to who should call again after a delay.
func later(delay time.Duration, text string) error {
	s := status.New(codes.ResourceExhausted, text)
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// Load is how much there is to sign.
type Load struct {
	// Mean of one signature; 0 before the first.
	Mean time.Duration
	// Calls that wait for their turn, and the Signatures that they are for.
	Calls, Signatures int
}

// Load returns the present one.
func (g *Gate) Load() Load {
	c := &g.capacity
	c.mu.Lock()
	defer c.mu.Unlock()
	return Load{c.mean, c.calls, c.behind}
}
