// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

// serve starts a server, which tells its callers to call anew after age (GOAWAY).
func serve(t *testing.T, age time.Duration) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: age}))
	healthv1.RegisterHealthServer(g, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func set(t *testing.T, names ...string) *Set {
	t.Helper()
	s, err := New(names, net.DefaultResolver.LookupHost)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, s *Set) *Conn {
	t.Helper()
	c, err := s.Dial(insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// call returns the address of who answered.
func call(t *testing.T, c *Conn) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var p peer.Peer
	_, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Peer(&p))
	if err != nil {
		return "", err
	}
	return p.Addr.String(), nil
}

func must(t *testing.T, c *Conn) string {
	t.Helper()
	who, err := call(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return who
}

// silent accepts connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// Agents spread, and go on at once to one that answers.
func TestSpreadAndFailover(t *testing.T) {
	a, stop := serve(t, time.Hour)
	b, _ := serve(t, time.Hour)
	s := set(t, a, b)
	seen := map[string]int{}
	for range 40 { // all at one of two: 2 in 10^12
		seen[must(t, dial(t, s))]++
	}
	if len(seen) != 2 || !s.Several() {
		t.Errorf("went to %v", seen)
	}
	stop()
	for range 5 {
		if who := must(t, dial(t, s)); who != b {
			t.Errorf("went to %s, which is away", who)
		}
	}
}

// A server that takes the connection and then says nothing holds nobody up.
func TestSilentServer(t *testing.T) {
	a, _ := serve(t, time.Hour)
	s := set(t, silent(t), silent(t), a)
	s.Prefer(s.names[0])
	began := time.Now()
	if who := must(t, dial(t, s)); who != a {
		t.Errorf("went to %s", who)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestPreferredAndAvoided(t *testing.T) {
	a, stop := serve(t, time.Hour)
	b, _ := serve(t, time.Hour)
	s := set(t, a, b)
	s.Prefer(a)
	for range 10 {
		if who := must(t, dial(t, s)); who != a {
			t.Fatalf("went to %s, not to the preferred one", who)
		}
	}
	s.Avoid(a)
	for range 10 {
		if who := must(t, dial(t, s)); who != b {
			t.Fatalf("went to %s, which was left", who)
		}
	}
	stop()
	s.Avoid(b) // the other one is away: better one that was left than none
	if who := must(t, dial(t, s)); who != b {
		t.Fatalf("went to %s", who)
	}
}

// A pinned connection comes back to its server after a GOAWAY, and to no other.
func TestPinned(t *testing.T) {
	a, stop := serve(t, 100*time.Millisecond)
	b, _ := serve(t, time.Hour)
	s := set(t, a, b)
	s.Prefer(a)
	c := dial(t, s)
	if who := must(t, c); who != a {
		t.Fatal(who)
	}
	c.Pin(a)
	s.Prefer(b)
	for range 20 {
		if who := must(t, c); who != a {
			t.Fatalf("a pinned connection went to %s", who)
		}
		time.Sleep(25 * time.Millisecond)
	}
	stop()
	if who, err := call(t, c); err == nil {
		t.Errorf("a pinned connection went to %s", who)
	}
}

// All addresses of a name count, and a name that is not found is no harm where another is.
func TestNames(t *testing.T) {
	a, _ := serve(t, time.Hour)
	_, port, _ := net.SplitHostPort(a)
	lookup := func(_ context.Context, host string) ([]string, error) {
		if host == "many.test" {
			return []string{"127.0.0.2", "127.0.0.1", "127.0.0.1"}, nil // nobody is at the first
		}
		return nil, errors.New("no such host " + host)
	}
	s, err := New([]string{"none.test:1", "many.test:" + port}, lookup)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.addresses(t.Context()); err != nil || len(list) != 2 || list[0].ServerName != "many.test" {
		t.Errorf("found %v, %v", list, err)
	}
	if who := must(t, dial(t, s)); who != a {
		t.Errorf("went to %s", who)
	}
	lost, err := New([]string{"none.test:1"}, lookup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call(t, dial(t, lost)); err == nil || !strings.Contains(err.Error(), "no such host none.test") {
		t.Errorf("got %v", err)
	}
}

func TestWrongNames(t *testing.T) {
	for _, names := range [][]string{nil, {"a"}, {"a:1", ":1"}, {"a:"}, {"::1:2:"}} {
		if _, err := New(names, nil); err == nil {
			t.Errorf("%q was taken", names)
		}
	}
}
