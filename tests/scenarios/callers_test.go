// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Many programs at once, several processes of each: everybody gets its own identity and no other.
func TestManyAtOnce(t *testing.T) {
	const programs, each = 8, 5
	code, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var paths []string
	for i := range programs {
		path := filepath.Join(dir, fmt.Sprint("program", i))
		// Bytes after an ELF image change its digest and nothing else.
		if err := os.WriteFile(path, fmt.Appendf(slices.Clip(code), "%d", i), 0o755); err != nil {
			t.Fatal(err)
		}
		shared.create(t, fmt.Sprint("/program/", i), "--binary", path)
		paths = append(paths, path)
	}
	var all []*workload
	for range each {
		for _, path := range paths {
			all = append(all, shared.startWorkload(t, path))
		}
	}
	for n, w := range all {
		want := fmt.Sprint("spiffe://example.org/program/", n%programs)
		if e := w.next(t, shared); !slices.Equal(e.IDs, []string{want}) {
			t.Errorf("process %d got %+v, want %s", n, e, want)
		}
	}
	for _, w := range all {
		w.quiet(t)
	}
}

// Whoever executes another program on its open connection is somebody else: nothing that is
// signed afterwards reaches it.
func TestExecOnOpenStream(t *testing.T) {
	e := shared.create(t, "/w", "--selector", me(t))
	w := shared.startWorkload(t, self)
	other := shared.startWorkload(t, self)
	w.next(t, shared)
	other.next(t, shared)
	refused := shared.logs.count("caller refused")
	if _, err := fmt.Fprintln(w.stdin, "exec"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exec", func() bool { return strings.Contains(w.text(), "executed") })
	shared.must(t, nil, "entry", "update", e.ID, "--dns", "secret.example.org")
	if got := other.next(t, shared); !slices.Equal(got.DNS, []string{"secret.example.org"}) {
		t.Errorf("who stayed the same got %+v", got)
	}
	// At T1 the first use of the socket ends the connection, at T2 the next message is not sent.
	eventually(t, "the refusal", func() bool { return shared.logs.count("caller refused") > refused })
	eventually(t, "the stream's end to arrive", func() bool { return len(w.text()) > len("executed\n") })
	if strings.Contains(w.text(), "secret.example.org") {
		t.Error("the new SVID reached another program")
	}
}

// A caller that ends takes its stream with it and nobody else's, even if a child inherited the
// connection.
func TestCallerExits(t *testing.T) {
	shared.create(t, "/w", "--selector", me(t))
	stays := shared.startWorkload(t, self)
	stays.next(t, shared)
	streams := func() uint32 {
		s, err := shared.AgentStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Streams
	}
	eventually(t, "older streams to end", func() bool { return streams() == 1 })
	for _, end := range []func(w *workload) error{
		func(w *workload) error { return w.stdin.Close() },
		func(w *workload) error { return w.cmd.Process.Kill() },
		func(w *workload) error { _, err := fmt.Fprintln(w.stdin, "fork"); return err },
	} {
		w := shared.startWorkload(t, self)
		w.next(t, shared)
		if n := streams(); n != 2 {
			t.Errorf("%d streams, want 2", n)
		}
		if err := end(w); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stream to end", func() bool { return streams() == 1 })
	}
	stays.quiet(t)
}

// A workload that does not read delays nobody, and reads the newest when it goes on.
func TestSlowReader(t *testing.T) {
	e := shared.create(t, "/w", "--selector", me(t))
	slow, quick := shared.startWorkload(t, self), shared.startWorkload(t, self)
	slow.next(t, shared)
	quick.next(t, shared)
	if err := slow.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Much more than HTTP/2's 64 KiB of a stream: the agent's sends block.
	var last string
	label := strings.Repeat("x", 60)
	for i := range 12 {
		args := []string{"entry", "update", e.ID}
		for j := range 100 {
			last = fmt.Sprintf("n%d-%d.%s.%[3]s.%[3]s.example.org", i, j, label)
			args = append(args, "--dns", last)
		}
		began := time.Now()
		shared.must(t, nil, args...)
		if got := quick.next(t, shared); !slices.Contains(got.DNS, last) {
			t.Fatalf("update %d: %d names, not the last", i, len(got.DNS))
		}
		if d := time.Since(began); d > patience/4 {
			t.Errorf("update %d took %s", i, d)
		}
	}
	if err := slow.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	messages := 0
	for got := (event{}); !slices.Contains(got.DNS, last); messages++ {
		if got = slow.next(t, shared); got.Code != "" {
			t.Fatalf("its stream ended: %+v", got)
		}
	}
	if messages >= 12 {
		t.Errorf("%d messages were kept for a workload that did not read: its sends never blocked", messages)
	}
}
