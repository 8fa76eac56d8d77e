// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// What the server's policy allowed to one process is no other's, nor that process's when it is no longer what it was.
func TestPerProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.perProcess.Store(true)
		var alive atomic.Uint64 // 0: all
		m := New(Config{Signer: s, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Alive: func(p selectors.ProcessKey) bool {
			return alive.Load() == 0 || alive.Load() == p.ExecID
		}})
		m.Trust(trust.Change{Own: bundle(trust.Tainted{})})
		m.Entries(true, []*selectors.Entry{entry("a", 0)}, nil, 1)
		of := func(exec uint64, set selectors.Set) *process {
			return &process{selectors.Facts{Process: selectors.ProcessKey{ExecID: exec}}, set}
		}
		get := func(p *process, kind Kind) *SVID {
			t.Helper()
			got, err := m.all(t.Context(), p, m.Match(p.set), kind, nil)
			if err != nil || len(got) != 1 {
				t.Fatalf("%v, %v", got, err)
			}
			return got[0]
		}
		one, two := of(1, set), of(2, set)
		for _, kind := range []Kind{X509, WIT} {
			first := get(one, kind)
			if get(two, kind) == first || get(one, kind) != first {
				t.Errorf("%s: shared, or not kept", kind)
			}
			if get(of(1, set[:1]), kind) == first {
				t.Errorf("%s: kept for a process that changed", kind)
			}
		}
		// At once, when nothing is known of the entry yet.
		m.Entries(true, []*selectors.Entry{entry("b", 0)}, nil, 2)
		if n := m.State().SVIDs; n != 0 {
			t.Errorf("%d SVIDs are left of an entry that has gone", n)
		}
		before := s.signed.Load()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { get(of(uint64(i%10)+1, set), X509) })
		}
		wg.Wait()
		if n := s.signed.Load() - before; n != 10 {
			t.Errorf("signed %d times for 10 processes", n)
		}
		// Only its own listener is woken and renews; those without one are dropped, as in TestGrace.
		listener := m.Subscribe(one)
		other := m.Subscribe(of(99, set))
		woken(listener)
		woken(other)
		time.Sleep(34 * time.Minute)
		synctest.Wait()
		if !woken(listener) || woken(other) {
			t.Error("the wrong one is told that it is time to renew")
		}
		renewed := get(one, X509)
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if n := m.State().SVIDs; n != 1 || get(one, X509) != renewed {
			t.Errorf("%d SVIDs are held for one process", n)
		}
		listener.Close()
		other.Close()
		// The server no longer says so.
		s.perProcess.Store(false)
		m.Entries(true, []*selectors.Entry{entry("b", 1)}, nil, 3)
		if get(one, X509) != get(two, X509) {
			t.Error("not shared")
		}
		// The entry does.
		e := entry("b", 2)
		e.Options.PerProcess = true
		m.Entries(true, []*selectors.Entry{e}, nil, 4)
		if a, b := get(one, X509), get(two, X509); a == b || a.EntryRevision != 2 || b.EntryRevision != 2 {
			t.Error("shared")
		}
		// It has exited.
		alive.Store(2)
		time.Sleep(2 * tick)
		if m.State().SVIDs != 1 {
			t.Errorf("%d SVIDs are held for one living process", m.State().SVIDs)
		}
		// And no longer.
		m.Entries(true, []*selectors.Entry{entry("b", 3)}, nil, 5)
		if a, b := get(one, X509), get(two, X509); a != b {
			t.Error("not shared")
		}
		time.Sleep(2 * tick)
		if m.State().SVIDs != 1 {
			t.Error("the SVID of a process is kept beside the shared one")
		}
		m.Entries(true, nil, nil, 6)
	})
}
