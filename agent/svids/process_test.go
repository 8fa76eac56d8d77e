// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/assay-id/assay/selectors"
)

// What the server's policy allowed to one process is no other's, nor that process's when it is no longer what it was.
func TestPerProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.perProcess.Store(true)
		m := manager(s, entry("a", 0))
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
		// Without listeners they end with their time; with one, it is woken.
		listener := m.Subscribe(set)
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		if !woken(listener) {
			t.Error("nobody is told that it is time to renew")
		}
		renewed := get(one, X509)
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if n := m.State().SVIDs; n != 1 || get(one, X509) != renewed {
			t.Errorf("%d SVIDs are held for one process", n)
		}
		listener.Close()
		// The server no longer says so.
		s.perProcess.Store(false)
		m.Entries(true, []*selectors.Entry{entry("b", 1)}, nil, 3)
		if get(one, X509) != get(two, X509) {
			t.Error("not shared")
		}
		m.Entries(true, nil, nil, 4)
	})
}
