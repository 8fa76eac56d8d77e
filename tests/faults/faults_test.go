// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// create registers one entry; nil means that the server has acknowledged it.
func (s *server) create(ctx context.Context, path string, dnsNames ...string) error {
	parent := &types.SPIFFEID{TrustDomain: "example.org", Path: "/node/" + s.name}
	resp, err := s.entry.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		ParentId: parent, SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: path}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:4711"}}, DnsNames: dnsNames,
	}}})
	if err != nil {
		return err
	}
	if st := resp.Results[0].Status; codes.Code(st.Code) != codes.OK {
		return status.Error(codes.Code(st.Code), st.Message)
	}
	return nil
}

// entries are all that the server's replica has, by id.
func (s *server) entries(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for token := ""; ; {
		resp, err := s.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{PageSize: 500, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Entries {
			all[e.Id] = e.SpiffeId.Path
		}
		if token = resp.NextPageToken; token == "" {
			return all
		}
	}
}

// writers write at every server until they are stopped, and know what was acknowledged.
type writers struct {
	mu    sync.Mutex
	acked []string
	last  time.Time
	gap   time.Duration // the longest time without an acknowledgement
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

func (h *house) write() *writers { return h.writePatiently(3 * time.Second) }

// writePatiently waits so long for each acknowledgement.
func (h *house) writePatiently(patience time.Duration) *writers {
	ctx, cancel := context.WithCancel(h.t.Context())
	w := &writers{stop: cancel, last: time.Now()}
	for _, s := range h.servers {
		for k := range 2 {
			client := *s // survives the server's end: the connection is closed, calls fail
			w.wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					path := fmt.Sprintf("/w/%s/%d/%d/%d", client.name, k, time.Now().UnixNano(), i)
					call, end := context.WithTimeout(ctx, patience)
					if client.create(call, path) == nil {
						w.ack(path)
					} else {
						time.Sleep(10 * time.Millisecond)
					}
					end()
				}
			})
		}
	}
	return w
}

func (w *writers) ack(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, path)
	w.gap = max(w.gap, time.Since(w.last))
	w.last = time.Now()
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// more waits until so many more writes were acknowledged.
func (w *writers) more(t *testing.T, n int) {
	t.Helper()
	want := w.count() + n
	eventually(t, fmt.Sprintf("%d more writes", n), func() bool { return w.count() >= want })
}

// end stops them and checks what must hold after every fault: all servers have the same
// entries, and everything that was acknowledged is among them.
func (w *writers) end(t *testing.T, h *house) {
	t.Helper()
	w.stop()
	w.wg.Wait()
	w.more(t, 0)
	var first map[string]string
	eventually(t, "the servers to agree", func() bool {
		first = h.servers[0].entries(t)
		for _, s := range h.servers[1:] {
			if !maps.Equal(first, s.entries(t)) {
				return false
			}
		}
		return true
	})
	there := map[string]bool{}
	for _, path := range first {
		if there[path] {
			t.Errorf("%s is there twice", path)
		}
		there[path] = true
	}
	lost := 0
	for _, path := range w.acked {
		if !there[path] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(w.acked))
	}
	t.Logf("%d writes acknowledged, %d lost, longest gap %v; %d servers agree on %d entries", len(w.acked), lost, w.gap.Round(time.Millisecond), len(h.servers), len(first))
}

// refused checks that a server without a majority says so, soon, and that it still reads.
func (s *server) refused(t *testing.T) {
	t.Helper()
	var err error
	eventually(t, s.name+" to refuse writes at once", func() bool {
		began := time.Now()
		err = s.create(bounded(t, 15*time.Second), fmt.Sprintf("/refused/%d", began.UnixNano()))
		return err != nil && time.Since(began) < time.Second
	})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the store is not available") {
		t.Errorf("%s refuses with %v", s.name, err)
	}
	if _, err := s.entry.CountEntries(t.Context(), &entryv1.CountEntriesRequest{}); err != nil {
		t.Errorf("%s does not read its replica: %v", s.name, err)
	}
	t.Log(err)
}

// TestLeader is killed, and later cut off the network, while every server writes.
func TestLeader(t *testing.T) {
	h := build(t, 3)
	w := h.write()
	w.more(t, 50)
	killed := h.leader()
	killed.kill()
	w.more(t, 50)
	killed.start()
	w.end(t, h)
	for _, s := range h.servers {
		want := regexp.MustCompile(`(?m)^members +3, of which 3 answer\nleader +` + h.leader().name + `, term \d+\nrevision +\d{2,}, \d+ records behind\ndatabase +\d.*MiB, \d.* in use\nlimit +8064 MiB\n$`)
		if got := s.store("status"); !want.MatchString(got) {
			t.Errorf("%s: %s", s.name, got)
		}
	}

	w = h.write()
	w.more(t, 50)
	cut := h.leader()
	cut.cable("down")
	cut.refused(t)
	w.more(t, 50)
	cut.cable("up")
	eventually(t, "the one that was cut off to write", func() bool {
		return cut.create(bounded(t, 3*time.Second), fmt.Sprintf("/healed/%d", time.Now().UnixNano())) == nil
	})
	w.end(t, h)
}

// TestTwoOfFive: two lost change nothing; with a third lost nothing is written; the machines of
// two come again as new ones.
func TestTwoOfFive(t *testing.T) {
	all(t)
	h := build(t, 5)
	w := h.write()
	w.more(t, 50)
	h.servers[3].kill()
	h.servers[4].kill()
	w.more(t, 100)
	h.servers[2].kill()
	h.servers[0].refused(t)
	h.servers[2].start()
	w.more(t, 50)
	for _, s := range h.servers[3:] {
		if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
			t.Fatal(err)
		}
		s.enter("replace")
		s.start()
	}
	eventually(t, "five voters", func() bool { return h.servers[0].voters() == 5 })
	w.end(t, h)
}

// TestAllLost: every machine is new, and there is a backup that was made while all wrote.
func TestAllLost(t *testing.T) {
	all(t)
	h := build(t, 3)
	file := filepath.Join(h.dir, "backup")
	w := h.write()
	w.more(t, 100)
	before := w.count()
	h.servers[1].store("backup", file)
	w.more(t, 50)
	w.end(t, h)
	for _, s := range h.servers {
		s.kill()
		if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	h.servers[2].store("restore", file)
	h.servers[2].store("init")
	h.servers[2].start()
	for _, s := range h.servers[:2] {
		s.enter("join")
		s.start()
	}
	again := h.write()
	again.more(t, 50)
	again.acked = append(again.acked, w.acked[:before]...)
	again.end(t, h)
}

// TestHungLeader: a disk that does not answer looks like this to the others.
func TestHungLeader(t *testing.T) {
	all(t)
	h := build(t, 3)
	w := h.write()
	w.more(t, 50)
	hung := h.leader()
	pid := hung.memberPID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.more(t, 50)
	hung.refused(t)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.end(t, h)
}

// TestStoreLostAtStart: a server that starts at another one's store, which ends at some moment of the start and comes back,
// starts all the same.
func TestStoreLostAtStart(t *testing.T) {
	all(t)
	h := build(t, 1)
	first := h.servers[0]
	second := h.add(2)
	second.configure(fmt.Sprintf("store {\n  endpoints = [\"unix://%s/data/store/run/client.sock\"]\n}", first.dir))
	for moment := 50 * time.Millisecond; moment < time.Second; moment += 100 * time.Millisecond {
		pid := first.memberPID()
		lost := time.AfterFunc(moment, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		second.start()
		lost.Stop()
		eventually(t, fmt.Sprintf("a write after the store was lost %v after the start", moment), func() bool {
			err := second.create(bounded(t, 5*time.Second), fmt.Sprintf("/started/%v", moment))
			return err == nil || status.Code(err) == codes.AlreadyExists // by a try that got no answer
		})
		second.stop() // in order: nobody waits for it to learn the next one's keys
		if err := os.RemoveAll(filepath.Join(second.dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(first.entries(t)); n != 10 {
		t.Errorf("%d entries, want 10", n)
	}
}
