// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/store/member"
)

// large are entries as of a large installation: 10,000 agents, 20,000 services, three or four
// selectors.
func large(i int) *selectors.Entry {
	service := (i*7919 + i/10_000*13) % 20_000
	e := entry(fmt.Sprintf("/spire/agent/tpm/%064x", i%10_000), fmt.Sprintf("/ns/namespace-%d/sa/service-%d", service%200, service),
		fmt.Sprintf("unix:uid:%d", 1000+service%3000), fmt.Sprintf("unix:sha256:%064x", service), "unix:gid:1000")
	if i%3 == 0 {
		e.Selectors = append(e.Selectors, selectors.Selector{Type: "evidence", Value: "tier:t2"})
	}
	e.X509SVIDTTL = time.Hour
	return e
}

// BenchmarkScale fills one server and its member with ASSAY_BENCH_ENTRIES entries (default
// 50,000) and says how fast, how large, and how soon it is back after a restart. With
// ASSAY_BENCH_SETTLE it waits so long before it measures what is settled: etcd drops the history
// of more than five minutes ago every five minutes.
//
//	ASSAY_BENCH_ENTRIES=1000000 ASSAY_BENCH_SETTLE=11m go test -run '^$' -bench Scale -benchtime 1x -timeout 2h -v ./server/entries
func BenchmarkScale(b *testing.B) {
	total := 50_000
	if text := os.Getenv("ASSAY_BENCH_ENTRIES"); text != "" {
		var err error
		if total, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		b.Logf("load at start: %s", read(b, "/proc/loadavg"))
		dir := b.TempDir()
		s, r := start(b, dir)
		m := &maker{b: b, r: r}
		part := min(50_000, total/4)
		m.report("batches of 100, 16 in flight, from empty", part, 100, 16)
		m.report("singly, 64 in flight, from there", part/5, 1, 64)
		m.report("batches of 500, 8 in flight, until nearly all are there", total-int(m.next.Load())-part-part/5, 500, 8)
		m.report("batches of 100, 16 in flight, at that many", part, 100, 16)
		m.report("singly, 64 in flight, at that many", part/5, 1, 64)
		memory(b, "filled", s, r)
		if wait, err := time.ParseDuration(os.Getenv("ASSAY_BENCH_SETTLE")); err == nil {
			time.Sleep(wait)
			memory(b, "settled", s, r)
		}
		r.Close()
		s.Close()

		s, r = start(b, dir)
		memory(b, "restarted", s, r)
		if n := r.Count(entries.Filter{}); n != total {
			b.Fatalf("%d entries after the restart, want %d", n, total)
		}
		started := time.Now()
		for range 100 {
			r.Authorized(id(fmt.Sprintf("/spire/agent/tpm/%064x", 77)), nil)
		}
		b.Logf("authorised entries of an agent with %d: %v", len(r.Authorized(id(fmt.Sprintf("/spire/agent/tpm/%064x", 77)), nil)), time.Since(started)/100)
		r.Close()
		s.Close()
	}
}

func start(b *testing.B, dir string) (*store.Store, *entries.Registry) {
	began, cpu := time.Now(), cpuTime()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	s, err := store.Open(ctx, store.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	there, first := time.Since(began), cpuOf(b, child(b))
	r, err := entries.Open(ctx, entries.Config{Store: s, TrustDomain: td, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("start: member ready after %v, entries read after %v (CPU of the member until ready %v, in all %v, of this process %v)", there, time.Since(began), first, cpuOf(b, child(b)), cpuTime()-cpu)
	return s, r
}

// maker creates entries.
type maker struct {
	b    *testing.B
	r    *entries.Registry
	next atomic.Int64
}

func (m *maker) report(what string, n, batch, inFlight int) {
	began, cpu, member := time.Now(), cpuTime(), cpuOf(m.b, child(m.b))
	var left atomic.Int64
	left.Store(int64(n))
	times := make([][]time.Duration, inFlight)
	var wg sync.WaitGroup
	for w := range inFlight {
		wg.Go(func() {
			for {
				size := min(int64(batch), left.Add(-int64(batch))+int64(batch))
				if size <= 0 {
					return
				}
				es := make([]*selectors.Entry, size)
				for i := range es {
					es[i] = large(int(m.next.Add(1) - 1))
				}
				at := time.Now()
				for _, res := range m.r.Create(m.b.Context(), es) {
					if res.Err != nil {
						m.b.Error(res.Err)
						return
					}
				}
				times[w] = append(times[w], time.Since(at))
			}
		})
	}
	wg.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(times...)))
	took := time.Since(began)
	m.b.Logf("%s: %.0f entries/s (%d; p50 %v, p99 %v; CPU per entry: this process %v, member %v)", what, float64(n)/took.Seconds(), n,
		all[len(all)/2].Round(time.Microsecond), all[len(all)*99/100].Round(time.Microsecond), (cpuTime()-cpu)/time.Duration(n), (cpuOf(m.b, child(m.b))-member)/time.Duration(n))
}

// memory reports what both processes take when they have come to rest.
func memory(b *testing.B, when string, s *store.Store, r *entries.Registry) {
	time.Sleep(2 * time.Second)
	debug.FreeOSMemory()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	n := r.Count(entries.Filter{})
	own, its := rollup(b, os.Getpid()), rollup(b, child(b))
	b.Logf("%s, %d entries: this process heap %d B an entry, RSS %d; member RSS %d, of which not the database file %d; both %d B an entry; peaks %s, %s; database %d MB; last GC pause %v",
		when, n, mem.HeapAlloc/uint64(n), own["Rss"]/n, its["Rss"]/n, its["Anonymous"]/n, (own["Rss"]+its["Rss"])/n, peak(b, os.Getpid()), peak(b, child(b)),
		s.Health().DatabaseBytes>>20, time.Duration(mem.PauseNs[(mem.NumGC+255)%256]))
}

func read(b *testing.B, path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// child is the pid of the store's member, our only child.
func child(b *testing.B) int {
	for _, path := range must(filepath.Glob("/proc/self/task/*/children")) {
		for _, pid := range strings.Fields(read(b, path)) {
			if strings.Contains(read(b, "/proc/"+pid+"/cmdline"), member.Command) {
				return must(strconv.Atoi(pid))
			}
		}
	}
	b.Fatal("the member has no process")
	return 0
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// rollup returns bytes by name.
func rollup(b *testing.B, pid int) map[string]int {
	out := map[string]int{}
	for line := range strings.Lines(read(b, fmt.Sprintf("/proc/%d/smaps_rollup", pid))) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
			out[strings.TrimSuffix(f[0], ":")] = must(strconv.Atoi(f[1])) << 10
		}
	}
	return out
}

func peak(b *testing.B, pid int) string {
	for line := range strings.Lines(read(b, fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "?"
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf is the CPU time of another process, to a hundredth of a second.
func cpuOf(b *testing.B, pid int) time.Duration {
	text := read(b, fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	return time.Duration(must(strconv.Atoi(f[11]))+must(strconv.Atoi(f[12]))) * 10 * time.Millisecond
}
