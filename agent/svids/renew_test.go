// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// An SVID that nobody uses is forgotten after the entry's grace, also long before its end; but while the server is away it stays.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		short, usual, long := entry("a", 0), entry("b", 0), entry("c", 0)
		short.Options.Grace, long.Options.Grace = time.Minute, 5*time.Hour
		var connected atomic.Bool
		connected.Store(true)
		m := New(Config{Signer: s, Connected: connected.Load, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
		m.Trust(trust.Change{Own: bundle(trust.Tainted{})})
		m.Entries(true, []*selectors.Entry{short, usual, long}, nil, 1)
		held := func(want int) {
			t.Helper()
			synctest.Wait()
			if n := m.State().SVIDs; n != want {
				t.Errorf("%d SVIDs are held, want %d", n, want)
			}
		}
		sub := m.Subscribe(&process{set: set})
		fetch(t, m)
		time.Sleep(25 * time.Minute)
		held(3)
		sub.Close()
		time.Sleep(time.Minute + 2*tick)
		held(2)
		time.Sleep(defaultGrace)
		held(1)
		time.Sleep(25 * time.Minute)
		held(0) // not longer than it is valid, whatever the grace
		if n := s.signed.Load(); n != 3 {
			t.Errorf("signed %d times for nobody", n-3)
		}

		fetch(t, m)
		connected.Store(false)
		time.Sleep(2 * defaultGrace)
		held(3)
		connected.Store(true)
		time.Sleep(2 * tick)
		held(1)

		fetch(t, m)
		m.Entries(false, []*selectors.Entry{entry("new", 0)}, nil, 2)
		s.fail(errors.New("connection refused"))
		m.x509(t.Context()) // hears of the fault
		time.Sleep(2 * defaultGrace)
		held(3)
		if st := m.State().Failing; st.Since.IsZero() || st.Error != "connection refused" || st.Next.Sub(st.Since) > 2*maxRetry {
			t.Errorf("the state says %+v", st)
		}
	})
}

// While the server is away it is asked less and less, the SVID serves to its last second, and when it is back all is well again.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		m := manager(s, entry("a", 0))
		first := fetch(t, m)[0]
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		s.fail(errors.New("connection refused"))
		tries := 0
		asked := time.Now()
		longest := time.Duration(0)
		for time.Now().Before(first.NotAfter.Add(-time.Second)) {
			select {
			case <-sub.C():
			case <-time.After(time.Until(first.NotAfter.Add(-time.Second))):
				continue
			}
			if time.Now().Before(first.NotBefore.Add(29 * time.Minute)) {
				continue // of the first issue
			}
			if got := fetch(t, m)[0]; got != first {
				t.Fatal("another SVID, from nowhere")
			}
			if tries++; tries > 2 {
				longest = max(longest, time.Since(asked))
			}
			asked = time.Now()
		}
		if tries < 20 || tries > 120 || longest > 2*maxRetry {
			t.Errorf("asked %d times in half an hour, at most %v apart", tries, longest)
		}
		if got, err := m.x509(t.Context()); err != nil || got[0] != first {
			t.Errorf("in its last second: %v, %v", got, err)
		}
		time.Sleep(2 * time.Second)
		if _, err := m.x509(t.Context()); err == nil {
			t.Error("it serves beyond its end")
		}
		woken(sub)
		s.fail(nil)
		<-sub.C() // the listener is told to ask again, though it has nothing
		if got := fetch(t, m)[0]; got == first || m.State().Failing != (Failing{}) {
			t.Errorf("still failing: %+v", m.State().Failing)
		}
	})
}

// The wall clock jumps ahead while the monotonic one goes on, or stops: a machine that slept.
func TestClockJumpsAhead(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "noticed": false} {
		synctest.Test(t, func(t *testing.T) {
			var jump atomic.Int64
			now := func() time.Time { return time.Now().Round(0).Add(time.Duration(jump.Load())) }
			s := newServer(t)
			m := New(Config{Signer: s, Logger: slog.New(slog.DiscardHandler), Now: now})
			m.Trust(trust.Change{Own: bundle(trust.Tainted{})})
			m.Entries(true, []*selectors.Entry{entry("a", 0)}, nil, 1)
			first := fetch(t, m)[0]
			sub := m.Subscribe(&process{set: set})
			defer sub.Close()
			jump.Store(int64(40 * time.Minute))
			wait := tick + granule
			if told {
				m.ClockSet()
				wait = granule
			}
			time.Sleep(wait)
			synctest.Wait()
			if !woken(sub) {
				t.Fatalf("%s: nobody is told that the SVID is past its half life", name)
			}
			if fetch(t, m)[0] == first {
				t.Errorf("%s: not renewed", name)
			}
		})
	}
}

// The clock was ahead and is set back: what is not valid yet is made anew, and served no more.
func TestClockJumpsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var jump atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }
		s := newServer(t)
		m := New(Config{Signer: s, Logger: slog.New(slog.DiscardHandler), Now: now})
		m.Trust(trust.Change{Own: bundle(trust.Tainted{})})
		m.Entries(true, []*selectors.Entry{entry("a", 0)}, nil, 1)
		first := fetch(t, m)[0]
		token := pid(1).jwt(t, m, "x")
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		jump.Store(-int64(2 * time.Hour))
		m.ClockSet()
		s.fail(errors.New("connection refused"))
		if got, err := m.x509(t.Context()); err == nil {
			t.Errorf("served %v, which is not valid yet", got)
		}
		s.fail(nil)
		time.Sleep(2 * retryAfter)
		if !woken(sub) || fetch(t, m)[0] == first || pid(1).jwt(t, m, "x") == token {
			t.Error("not made anew")
		}
		n := s.signed.Load()
		for range 5 { // the server's clock goes on to be ahead; it is not asked all the time for that
			fetch(t, m)
			time.Sleep(time.Second)
		}
		if s.signed.Load() != n {
			t.Error("signed again and again")
		}
	})
}

// slow is a server that answers after a second and knows how many ask at once.
type slow struct {
	*server
	mu              sync.Mutex
	asking, highest int
}

func (s *slow) SignX509SVID(ctx context.Context, e *selectors.Entry, csr []byte, f *selectors.Facts) ([]*x509.Certificate, bool, error) {
	s.mu.Lock()
	s.asking++
	s.highest = max(s.highest, s.asking)
	s.mu.Unlock()
	time.Sleep(time.Second)
	s.mu.Lock()
	s.asking--
	s.mu.Unlock()
	return s.server.SignX509SVID(ctx, e, csr, f)
}

// atOnce is how many asked at once since it was last called.
func (s *slow) atOnce() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.highest
	s.highest = 0
	return n
}

// Hundreds of SVIDs are due at once: few are renewed at a time, all in the end, and no listener goes without.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{server: newServer(t)}
		const count = 300
		var entries []*selectors.Entry
		for i := range count {
			e := entry(fmt.Sprintf("e%d", i), 0)
			e.Selectors = []selectors.Selector{{Type: "unix", Value: fmt.Sprint("uid:", i)}}
			entries = append(entries, e)
		}
		m := manager(s, entries...)
		var got [count]atomic.Pointer[SVID]
		ctx, cancel := context.WithCancel(t.Context())
		var streams sync.WaitGroup
		for i, e := range entries {
			p := &process{set: e.SelectorSet()}
			sub := m.Subscribe(p)
			streams.Go(func() {
				defer sub.Close()
				for {
					list, err := m.X509(ctx, p, []*selectors.Entry{e})
					if err != nil || len(list) != 1 {
						t.Errorf("listener %d: %v", i, err)
						return
					}
					got[i].Store(list[0])
					select {
					case <-ctx.Done():
						return
					case <-sub.C():
					}
				}
			})
		}
		time.Sleep(5 * time.Second)
		if n := s.atOnce(); n < count {
			t.Errorf("first SVIDs waited for each other: %d at once", n)
		}
		time.Sleep(35 * time.Minute)
		synctest.Wait()
		for i := range got {
			if v := got[i].Load(); v == nil || !time.Now().Before(half(v)) {
				t.Fatalf("listener %d was left with %v", i, v)
			}
		}
		if n := s.atOnce(); n == 0 || n > renewalsAtOnce {
			t.Errorf("%d renewals at once", n)
		}
		cancel()
		streams.Wait()
	})
}

// While one caller waits for the renewal, another has what is still good.
func TestRenewalMakesNobodyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{server: newServer(t)}
		m := manager(s, entry("a", 0))
		first := fetch(t, m)[0]
		time.Sleep(8 * time.Minute)
		fetch(t, m)
		time.Sleep(8 * time.Minute)
		fetch(t, m)
		time.Sleep(8 * time.Minute)
		fetch(t, m)
		time.Sleep(7 * time.Minute)
		go m.x509(t.Context())
		synctest.Wait()
		start := time.Now()
		if fetch(t, m)[0] != first || time.Since(start) > 0 {
			t.Errorf("waited %v", time.Since(start))
		}
		time.Sleep(2 * time.Second)
		if fetch(t, m)[0] == first {
			t.Error("not renewed")
		}
	})
}

func TestKeyTypes(t *testing.T) {
	e := entry("a", 0)
	e.Options.KeyType = selectors.KeyRSA2048
	m := manager(newServer(t), e, entry("b", 0))
	got := fetch(t, m)
	for i, want := range []bool{true, false} {
		key, err := x509.ParsePKCS8PrivateKey(got[i].Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := key.(*rsa.PrivateKey); ok != want {
			t.Errorf("entry %s: a %T", got[i].EntryID, key)
		}
	}
}

// What is prefetched is there when the workload asks, and only what the entry wants so.
func TestPrefetch(t *testing.T) {
	s := newServer(t)
	path := selectors.Selector{Type: "unix", Value: "path:/bin/a"}
	early, late := entry("a", 0), entry("b", 0)
	early.Selectors = append([]selectors.Selector{path}, set[0])
	early.Options.Prefetch = true
	m := manager(s, early, late)
	if !m.Expects("/bin/a") || m.Expects("/bin/b") || m.Expects("") {
		t.Error("expects other programs")
	}
	p := &process{set: selectors.NewSet(append([]selectors.Selector{path}, set...)...)}
	if err := m.Prefetch(t.Context(), p); err != nil || s.signed.Load() != 1 {
		t.Errorf("signed %d, %v", s.signed.Load(), err)
	}
	if err := m.Prefetch(t.Context(), &process{set: set}); err != nil || s.signed.Load() != 1 {
		t.Errorf("for another program: signed %d, %v", s.signed.Load(), err)
	}
	if got, err := m.X509(t.Context(), p, []*selectors.Entry{early}); err != nil || got[0].Serial != "1" {
		t.Errorf("got %v, %v", got, err)
	}
	next := *early
	next.Revision, next.Options.Prefetch = 1, false
	m.Entries(false, []*selectors.Entry{&next}, nil, 2)
	if m.Expects("/bin/a") || len(m.programs) != 0 {
		t.Error("still expects it")
	}
}
