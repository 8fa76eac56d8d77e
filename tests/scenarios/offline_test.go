// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

const keptText = "serving identities that were kept over the restart"

// kept reports whether `assay agent status` says that the agent serves what was kept.
func (m *machine) kept(t *testing.T) bool {
	t.Helper()
	s, err := m.AgentStatus(t.Context())
	return err == nil && slices.ContainsFunc(s.Degraded, func(d string) bool { return strings.HasPrefix(d, keptText) })
}

func (m *machine) keepFile() string { return filepath.Join(m.Dir, "data/agent/keep.bin") }

// keeps starts a workload and waits until what it has is on disk.
func (m *machine) keeps(t *testing.T) (w *workload, first event) {
	t.Helper()
	var before int64
	eventually(t, "the entry to be kept", func() bool {
		f, err := os.Stat(m.keepFile())
		if err == nil {
			before = f.Size()
		}
		return err == nil
	})
	w = m.startWorkload(t, self)
	if first = w.next(t, m); len(first.IDs) != 1 {
		t.Fatalf("got %+v", first)
	}
	eventually(t, "the SVID to be kept", func() bool {
		f, err := os.Stat(m.keepFile())
		return err == nil && f.Size() > before+500
	})
	return w, first
}

// crash stops the server, and then the agent without warning; the agent comes back alone.
func (m *machine) crash(t *testing.T, w *workload) {
	t.Helper()
	if err := m.StopServer(); err != nil {
		t.Fatal(err)
	}
	if err := m.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if e := w.next(t, m); e.Code != "Unavailable" {
		t.Errorf("the stream of a killed agent ended with %+v", e)
	}
	if err := m.StartAgentAlone(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// An agent that is killed while the server is away serves what it knew, to the same processes, and takes the server's word for
// all of it when that is back.
func TestOfflineRestart(t *testing.T) {
	for _, mode := range []string{"tpm", "disk"} {
		t.Run(mode, func(t *testing.T) {
			m := start(t, dev.Options{Agent: "offline_restart = \"" + mode + "\"\n"})
			m.create(t, "/w", "--selector", me(t))
			w, first := m.keeps(t)
			m.crash(t, w)
			eventually(t, "status to say that kept identities are served", func() bool { return m.kept(t) })
			again := m.startWorkload(t, self)
			if got := again.next(t, m); !slices.Equal(got.Serials, first.Serials) || !slices.Equal(got.IDs, first.IDs) {
				t.Errorf("while the server is away: %+v, want %+v", got, first)
			}
			stranger := filepath.Join(t.TempDir(), "stranger")
			program, err := os.ReadFile(self)
			if err == nil {
				err = os.WriteFile(stranger, append(program, 0), 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := m.startWorkload(t, stranger).next(t, m); got.Code != "PermissionDenied" {
				t.Errorf("a process that the entry is not about: %+v", got)
			}

			if err := m.StartServer(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the server's word", func() bool { return m.connected(t) && !m.kept(t) })
			if got := again.next(t, m); len(got.Serials) != 1 || got.Serials[0] == first.Serials[0] {
				t.Errorf("after the server came back: %+v", got)
			}
		})
	}
}

// What was kept is not served when the server has taken the node's identity back, nor when it is not allowed any more.
func TestOfflineRestartRefused(t *testing.T) {
	m := start(t, dev.Options{Agent: "offline_restart = \"tpm\"\n"})
	m.create(t, "/w", "--selector", me(t))
	w, _ := m.keeps(t)
	file, err := os.ReadFile(m.keepFile())
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(filepath.Join(m.Dir, "data/agent/agent.json"))
	if err != nil {
		t.Fatal(err)
	}

	m.must(t, nil, "node", "suspend", m.NodeID, "--reason", "looks odd")
	if e := w.next(t, m); e.Code == "" {
		t.Errorf("a workload on a suspended node: %+v", e)
	}
	eventually(t, "the kept file to go", func() bool { _, err := os.Stat(m.keepFile()); return os.IsNotExist(err) })
	if err := m.StopServer(); err != nil {
		t.Fatal(err)
	}
	none := func(what string) {
		t.Helper()
		if err := m.KillAgent(); err != nil {
			t.Fatal(err)
		}
		tries := m.logs.count("no conversation with the server")
		if err := m.StartAgentAlone(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a try to fail", func() bool { return m.logs.count("no conversation with the server") > tries })
		time.Sleep(2 * time.Second)
		if s, err := m.AgentStatus(t.Context()); err != nil || s.Entries+s.Svids > 0 || m.kept(t) {
			t.Errorf("%s: %v, %v", what, s, err)
		}
	}
	none("after a suspension")
	if e := m.startWorkload(t, self).next(t, m); e.Code != "Unavailable" {
		t.Errorf("after a suspension: %+v", e)
	}
	restore := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(m.Dir, "data/agent", name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore("keep.bin", file)
	none("the file alone put back")
	restore("keep.bin", append(file[:len(file)-1:len(file)-1], file[len(file)-1]^1))
	restore("agent.json", state)
	none("a file that was changed")
	restore("keep.bin", file)
	m.SetAgent("offline_restart = \"disk\"\n")
	none("under another setting")
	m.SetAgent("")
	none("never")
	if _, err := os.Stat(m.keepFile()); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}
