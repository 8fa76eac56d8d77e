// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

var (
	unit  = Caller{UID: 1000, Cgroup: 7}
	other = Caller{UID: 1000, Cgroup: 8}
	third = Caller{UID: 1001, Cgroup: 9}
)

func TestCount(t *testing.T) {
	c := NewCount(6, 2)
	enter := func(who Caller, want bool) {
		t.Helper()
		if err := c.Enter(who); (err == nil) != want {
			t.Fatalf("%+v: %v, want entry: %v", who, err, want)
		}
	}
	enter(unit, true)
	enter(unit, true)
	enter(unit, false)
	enter(other, true)
	enter(other, false) // half of all are one user's
	enter(third, true)
	enter(third, true)
	enter(Caller{UID: 1, Cgroup: 1}, true)
	enter(Caller{UID: 2, Cgroup: 1}, false) // all
	c.Leave(unit)
	enter(Caller{UID: 2, Cgroup: 1}, true)
	for _, who := range []Caller{unit, other, third, third, {UID: 1, Cgroup: 1}, {UID: 2, Cgroup: 1}} {
		c.Leave(who)
	}
	if c.open != 0 || len(c.users) != 0 || len(c.callers) != 0 {
		t.Errorf("after all left: %d, %v, %v", c.open, c.users, c.callers)
	}
}

func TestRate(t *testing.T) {
	now := time.Unix(1000, 0)
	r := NewRate(10, func() time.Time { return now })
	asks := func(who Caller, n, want int) {
		t.Helper()
		got := 0
		for range n {
			if r.Allow(who) {
				got++
			}
		}
		if got != want {
			t.Errorf("%d of %d were allowed, want %d", got, n, want)
		}
	}
	asks(unit, 15, 10)
	asks(other, 5, 5) // its own
	now = now.Add(500 * time.Millisecond)
	asks(unit, 15, 5)
	now = now.Add(time.Hour)
	asks(third, 1, 1)
	if len(r.callers) != 1 {
		t.Errorf("%d callers are remembered after an hour", len(r.callers))
	}
}

// TestTurns: who floods the queue waits for himself, others pass.
func TestTurns(t *testing.T) {
	turns, ctx := NewTurns(3, 2), t.Context()
	take := func(who Caller) func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		back, err := turns.Take(ctx, who)
		if err != nil {
			t.Fatalf("%+v: %v", who, err)
		}
		return back
	}
	held := []func(){take(unit), take(unit)}
	var flood sync.WaitGroup
	for range 100 {
		flood.Go(func() {
			if back, err := turns.Take(ctx, unit); err == nil {
				back()
			}
		})
	}
	for range 10 {
		take(third)()
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := turns.Take(short, unit); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third turn of one caller: %v", err)
	}
	held = append(held, take(third))
	if _, err := turns.Take(short, other); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fourth turn of all: %v", err)
	}
	for _, back := range held {
		back()
	}
	flood.Wait()
	if len(turns.callers) != 0 {
		t.Errorf("%d callers are remembered", len(turns.callers))
	}
}
