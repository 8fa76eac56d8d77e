// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// many are the entries of a busy node: each demands a program, a user and a unit.
func many(n int) []*selectors.Entry {
	out := make([]*selectors.Entry, n)
	for i := range out {
		out[i] = &selectors.Entry{
			ID: fmt.Sprintf("01890a5d-ac96-774b-bcce-b302%08x", i), SPIFFEID: spiffeid.RequireFromPath(td, fmt.Sprintf("/ns/default/service-%d", i)),
			ParentID: spiffeid.RequireFromPath(td, "/spire/agent/tpm/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), CreatedAt: time.Unix(1e9, 0),
			Selectors: []selectors.Selector{
				{Type: "unix", Value: fmt.Sprintf("sha256:%064x", i)}, {Type: "unix", Value: "uid:1000"}, {Type: "systemd", Value: fmt.Sprintf("id:service-%d.service", i)},
			},
		}
	}
	return out
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkEntries10000 is a full view of 10,000 entries, as at an agent's start, and what it holds of memory, with the entries.
func BenchmarkEntries10000(b *testing.B) {
	var m *Manager
	before := heap()
	for range b.N {
		m = manager(nil)
		m.Entries(true, many(10_000), nil, 2)
	}
	b.StopTimer()
	b.ReportMetric(float64(heap()-before)/1e6, "MB-held")
	if got := m.State().Entries; got != 10_000 {
		b.Fatal(got)
	}
}

// BenchmarkChange10000 is the change of one entry out of 10,000, with 1,000 streams.
func BenchmarkChange10000(b *testing.B) {
	es := many(10_000)
	m := manager(nil, es...)
	for _, e := range es[:1000] {
		defer m.Subscribe(&process{set: e.SelectorSet()}).Close()
	}
	for i := 0; b.Loop(); i++ {
		e := *es[i%len(es)]
		e.Revision = int64(i + 1)
		m.Entries(false, []*selectors.Entry{&e}, nil, 3)
	}
}

// BenchmarkLook is the Manager's look at 10,000 SVIDs with 1,000 streams, at each tick.
func BenchmarkLook(b *testing.B) {
	es := many(10_000)
	m := manager(nil, es...)
	for _, e := range es {
		m.cache[slotKey{kind: X509, entry: e.ID}] = &slot{svid: &SVID{NotAfter: time.Now().Add(time.Hour)}, used: time.Now()}
	}
	for _, e := range es[:1000] {
		defer m.Subscribe(&process{set: e.SelectorSet()}).Close()
	}
	for b.Loop() {
		m.look()
	}
	if n := len(m.cache); n != 10_000 {
		b.Fatal(n)
	}
}
