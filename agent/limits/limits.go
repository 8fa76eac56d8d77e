// SPDX-License-Identifier: Apache-2.0

// Package limits bounds what one caller can take of the agent, so that none starves the others: how much is
// open at a time (Count), how often something is asked for (Rate), how much is worked out at a time (Turns).
package limits

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// Caller is whom limits are counted for: the processes of one user in one cgroup, that is in one unit or one
// container. The kernel says so when they connect, before anything is worked out about them. It is not a process:
// one can become a thousand.
type Caller struct {
	UID    uint32
	Cgroup uint64 // 0 where the kernel has no record
}

// Count bounds what is open at a time. It is safe for concurrent use; make one with NewCount.
type Count struct {
	total, perUser, perCaller int

	mu      sync.Mutex
	open    int
	users   map[uint32]int
	callers map[Caller]int
}

// NewCount allows total, and each caller so many of them. A user who makes cgroups of his own gets no more than half
// of all.
func NewCount(total, perCaller int) *Count {
	return &Count{total: total, perUser: max(total/2, perCaller), perCaller: perCaller, users: map[uint32]int{}, callers: map[Caller]int{}}
}

// Enter opens one more. Its error is a sentence.
func (c *Count) Enter(who Caller) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.callers[who] >= c.perCaller:
		return fmt.Errorf("the processes of one user in one cgroup may have %d open", c.perCaller)
	case c.users[who.UID] >= c.perUser:
		return fmt.Errorf("one user may have %d open", c.perUser)
	case c.open >= c.total:
		return fmt.Errorf("all callers together may have %d open", c.total)
	}
	c.open++
	c.users[who.UID]++
	c.callers[who]++
	return nil
}

// Leave closes one that was entered.
func (c *Count) Leave(who Caller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.users[who.UID]--; c.users[who.UID] == 0 {
		delete(c.users, who.UID)
	}
	if c.callers[who]--; c.callers[who] == 0 {
		delete(c.callers, who)
	}
}

// Rate bounds how often each caller asks for something. It is safe for concurrent use; make one with NewRate.
type Rate struct {
	perSecond int
	now       func() time.Time

	mu      sync.Mutex
	callers map[Caller]*rate.Limiter
	swept   time.Time
}

// NewRate allows each caller so many in a second, and as many at once.
func NewRate(perSecond int, now func() time.Time) *Rate {
	return &Rate{perSecond: perSecond, now: now, callers: map[Caller]*rate.Limiter{}, swept: now()}
}

// PerSecond is what is allowed.
func (r *Rate) PerSecond() int { return r.perSecond }

// Allow counts one and reports whether it may be.
func (r *Rate) Allow(who Caller) bool {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(now)
	l := r.callers[who]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(r.perSecond), r.perSecond)
		r.callers[who] = l
	}
	return l.AllowN(now, 1)
}

// sweep forgets who has asked for nothing for so long that it makes no difference.
func (r *Rate) sweep(now time.Time) {
	if now.Sub(r.swept) < time.Minute {
		return
	}
	r.swept = now
	for who, l := range r.callers {
		if l.TokensAt(now) >= float64(r.perSecond) {
			delete(r.callers, who)
		}
	}
}

// Turns bounds what is worked out at a time, fairly: of each caller only a few wait in the queue of all. It is safe for
// concurrent use; make one with NewTurns.
type Turns struct {
	all       *semaphore.Weighted
	perCaller int64

	mu      sync.Mutex
	callers map[Caller]*turn
}

type turn struct {
	queue *semaphore.Weighted
	users int // who hold it or wait for it
}

// NewTurns allows total at a time, and each caller so many of them.
func NewTurns(total, perCaller int) *Turns {
	return &Turns{all: semaphore.NewWeighted(int64(total)), perCaller: int64(perCaller), callers: map[Caller]*turn{}}
}

// Take waits for a turn, which giveBack ends. It fails when ctx ends.
func (t *Turns) Take(ctx context.Context, who Caller) (giveBack func(), err error) {
	own := t.join(who)
	if err := own.queue.Acquire(ctx, 1); err != nil {
		t.part(who, own)
		return nil, err
	}
	if err := t.all.Acquire(ctx, 1); err != nil {
		own.queue.Release(1)
		t.part(who, own)
		return nil, err
	}
	return func() {
		t.all.Release(1)
		own.queue.Release(1)
		t.part(who, own)
	}, nil
}

func (t *Turns) join(who Caller) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.callers[who]
	if own == nil {
		own = &turn{queue: semaphore.NewWeighted(t.perCaller)}
		t.callers[who] = own
	}
	own.users++
	return own
}

func (t *Turns) part(who Caller, own *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(t.callers, who)
	}
}
