// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// explained is the part of `explain -o json` that tests look at.
type explained struct {
	Facts struct {
		Observed bool
		Process  struct {
			ExecID string `json:"exec_id"`
			BootID string `json:"boot_id"`
		}
	}
	Selectors []string
}

func (m *machine) explain(t *testing.T, pid string) (x explained) {
	t.Helper()
	m.must(t, &x, "explain", "--pid", pid)
	return x
}

// serial is that of the node's SVID.
func (m *machine) serial(t *testing.T) string {
	t.Helper()
	var n struct {
		Serial string `json:"svid_serial"`
	}
	m.must(t, &n, "node", "show", m.NodeID)
	return n.Serial
}

// The kernel's records outlive the agent: what it saw start stays observed, and nothing is
// seeded again. The node proves itself by a new quote.
func TestAgentKilled(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t), "--selector", "evidence:observed")
	w := m.startWorkload(t, self)
	if e := w.next(t, m); len(e.IDs) != 1 {
		t.Fatalf("got %+v", e)
	}
	reconnecting := m.watch(t) // of the test itself, which ran before the sensor: no identity
	before, serial := m.explain(t, w.pid()), m.serial(t)
	if !before.Facts.Observed {
		t.Errorf("not observed: %+v", before)
	}

	if err := m.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if e := w.next(t, m); e.Code != "Unavailable" {
		t.Errorf("the stream of a killed agent ended with %+v", e)
	}
	late := m.startWorkload(t, self) // while no agent runs
	if e := late.next(t, m); e.Code != "Unavailable" {
		t.Errorf("without an agent: %+v", e)
	}
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := m.explain(t, w.pid())
	if !after.Facts.Observed || after.Facts.Process != before.Facts.Process || !slices.Equal(after.Selectors, before.Selectors) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if !m.explain(t, late.pid()).Facts.Observed {
		t.Error("a program that started while no agent ran was not observed")
	}
	if n := m.logs.count("kernel sensor taken over from its pins"); n != 1 {
		t.Errorf("the sensor was taken over %d times", n)
	}
	if n := m.logs.count(`msg="kernel sensor attached"`); n != 1 {
		t.Errorf("the sensor was attached, and so seeded, %d times", n)
	}
	if m.serial(t) == serial {
		t.Error("the node did not prove itself again")
	}
	m.create(t, "/test", "--selector", me(t))
	if x := reconnecting.next(t); len(x.SVIDs) != 1 || x.SVIDs[0].ID.Path() != "/test" {
		t.Errorf("a client that reconnects got %v", x.SVIDs)
	}
	again := m.startWorkload(t, self)
	if e := again.next(t, m); len(e.IDs) != 2 {
		t.Errorf("after the restart: %+v", e)
	}
}

// While the server is away, streams stay open and what is cached is served. It comes back
// with everything, and the agent comes back to it.
func TestServerRestarted(t *testing.T) {
	m := start(t, dev.Options{})
	e := m.create(t, "/w", "--selector", me(t))
	w := m.startWorkload(t, self)
	first := w.next(t, m)
	entries, bundle, serial := m.must(t, nil, "entry", "show"), m.must(t, nil, "bundle", "show"), m.serial(t)

	if err := m.StopServer(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent to notice", func() bool { return !m.connected(t) })
	other := m.startWorkload(t, self)
	if got := other.next(t, m); !slices.Equal(got.Serials, first.Serials) {
		t.Errorf("from the cache: %+v, want %+v", got, first)
	}
	w.quiet(t)

	if err := m.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.must(t, nil, "entry", "show"); got != entries {
		t.Errorf("entries before\n%s\nafter\n%s", entries, got)
	}
	if got := m.must(t, nil, "bundle", "show"); got != bundle {
		t.Errorf("bundle before\n%s\nafter\n%s", bundle, got)
	}
	eventually(t, "the agent to come back", func() bool { return m.connected(t) })
	if got := m.serial(t); got != serial {
		t.Errorf("the node's SVID was serial %s, is %s", serial, got)
	}
	w.quiet(t)
	other.quiet(t)
	m.must(t, nil, "entry", "update", e.ID, "--dns", "after.example.org")
	for _, w := range []*workload{w, other} {
		if got := w.next(t, m); !slices.Equal(got.DNS, []string{"after.example.org"}) {
			t.Errorf("a change after the restart: %+v", got)
		}
	}
}

// storeMember returns the process of the server's store.
func (m *machine) storeMember(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		cmdline, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if text := strings.ReplaceAll(string(cmdline), "\x00", " "); err == nil && strings.Contains(text, "store-member --dir "+m.Dir+"/") {
			var pid int
			if _, err := fmt.Sscan(p.Name(), &pid); err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("the server has no store-member process")
	return 0
}

// Signing does not wait for the store: it goes on while the store hangs, and while it is gone.
func TestStoreKilled(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t))
	pid := m.storeMember(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("while the store hangs: %+v", e)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes to come back", func() bool {
		_, err := m.assay(t, "entry", "create", "--spiffe-id", "spiffe://example.org/new", "--parent", m.NodeID, "--selector", me(t))
		return err == nil || strings.Contains(err.Error(), "similar entry already exists")
	})
	if again := m.storeMember(t); again == pid {
		t.Errorf("the store's process is still %d", pid)
	}
	eventually(t, "the new entry to arrive", func() bool {
		e := m.startWorkload(t, self).next(t, m)
		return slices.Contains(e.IDs, "spiffe://example.org/new") && slices.Contains(e.IDs, "spiffe://example.org/w")
	})
}
