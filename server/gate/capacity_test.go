// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// newCapacity signs 90 a second: 100 are 1.1 s.
func newCapacity() *capacity {
	c := &capacity{processors: 1}
	c.signed(10 * time.Millisecond)
	return c
}

func TestCapacityIsShared(t *testing.T) {
	c := newCapacity()
	var passed [2]atomic.Int64
	var group sync.WaitGroup
	ask := func(who string, calls int, count *atomic.Int64) {
		for range calls {
			group.Go(func() {
				if err := c.wait(t.Context(), who, 1); err != nil {
					t.Error(err)
				}
				count.Add(1)
			})
		}
	}
	began := time.Now()
	ask("greedy", 100, &passed[0])
	for passed[0].Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	ask("modest", 5, &passed[1])
	for passed[1].Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	if n := passed[0].Load(); n > 60 {
		t.Errorf("five calls of one had to wait for %d of another's", n)
	}
	group.Wait()
	if took := time.Since(began); took < time.Second { // 9 go at once, and 96 at 90 per second
		t.Errorf("105 signatures of 11 ms each had their turn within %s", took)
	}
}

func TestCapacityRefusesWhatWouldBeLate(t *testing.T) {
	c := newCapacity()
	if err := c.wait(t.Context(), "batch", 2000); err != nil { // tokens may become fewer than none
		t.Fatal(err)
	}
	for what, ctx := range map[string]func() (context.Context, context.CancelFunc){
		"longer than the bound": func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
		"a deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), time.Second)
		},
	} {
		ctx, cancel := ctx()
		err := c.wait(ctx, "late", 1)
		cancel()
		s := status.Convert(err)
		if s.Code() != codes.ResourceExhausted || len(s.Details()) != 1 {
			t.Fatalf("%s: %v, %v", what, err, s.Details())
		}
		retry := s.Details()[0].(*errdetails.RetryInfo).RetryDelay.AsDuration()
		if retry < 20*time.Second || retry > 24*time.Second {
			t.Errorf("%s: call again in %s; 2000 signatures take 22.2 s", what, retry)
		}
	}
}

func TestCapacityForgetsWhoIsGone(t *testing.T) {
	c := newCapacity()
	if err := c.wait(t.Context(), "batch", 100); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			if err := c.wait(ctx, "gone", 1); status.Code(err) != codes.Canceled {
				t.Errorf("%v, want Canceled", err)
			}
		})
	}
	for {
		c.mu.Lock()
		n := c.calls
		c.mu.Unlock()
		if n == 200 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	group.Wait()
	began := time.Now()
	if err := c.wait(t.Context(), "here", 1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second { // the batch is over after 1 s, those who are gone were 2.2
		t.Errorf("the signatures of those who are gone took %s", took)
	}
}

func TestMeanFallsFastAndRisesSlowly(t *testing.T) {
	c := newCapacity()
	for range 20 {
		c.signed(time.Millisecond)
	}
	c.signed(100 * time.Millisecond) // one that waited
	if c.mean > 3*time.Millisecond {
		t.Errorf("one slow signature makes the mean %s", c.mean)
	}
	for range 1000 {
		c.signed(100 * time.Millisecond)
	}
	if c.mean < 99*time.Millisecond {
		t.Errorf("the mean of slow signatures is %s", c.mean)
	}
}

func TestTurnstile(t *testing.T) {
	door := &turnstile{slots: 1, free: 1, mean: time.Second}
	if err := door.enter(false); err != nil {
		t.Fatal(err)
	}
	order := make(chan string, 8)
	wait := func(name string, begun bool, queue *[]chan struct{}, place int) {
		go func() {
			if err := door.enter(begun); err != nil {
				t.Error(err)
			}
			order <- name
			door.leave(time.Second)
		}()
		for n := 0; n < place; time.Sleep(time.Millisecond) {
			door.mu.Lock()
			n = len(*queue)
			door.mu.Unlock()
		}
	}
	for i, name := range []string{"1", "2", "3", "4", "5", "6"} {
		wait(name, false, &door.anew, i+1)
	}
	wait("begun", true, &door.begun, 1)
	if err := door.enter(false); !errors.Is(err, errBusy) {
		t.Errorf("behind seven who take a second each: %v", err)
	}
	door.leave(time.Second)
	for _, want := range []string{"begun", "1", "2", "3", "4", "5", "6"} {
		if got := <-order; got != want {
			t.Errorf("%s came in for %s", got, want)
		}
	}
	if err := door.enter(false); err != nil {
		t.Error(err)
	}
}

// deaf is a connection whose other side is never heard.
type deaf struct {
	net.Conn
	end <-chan struct{}
}

func (d deaf) Read([]byte) (int, error) { <-d.end; return 0, net.ErrClosed }

// TestSilentClientsHoldNoSlot: whoever connects and says nothing, or hello and no more, keeps nobody out.
func TestSilentClientsHoldNoSlot(t *testing.T) {
	a := newAuthority(t)
	s := open(t, a, time.Now)
	for i := range 100 {
		conn, err := net.Dial("tcp", s.tcp)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			go tls.Client(deaf{conn, t.Context().Done()}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
		}
	}
	if code := s.call(t, s.overTLS(t, a.svid(t, nodeID, time.Hour)), renew); code != codes.OK {
		t.Error(code)
	}
}
