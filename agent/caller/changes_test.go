// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

func testCredentials(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	p.say("become somebody")
	wantRefusal(t, "another user", c.Check(), CredentialsChanged)

	p, _, c = a.client(t)
	p.say("join a group")
	wantRefusal(t, "another supplementary group", c.Check(), CredentialsChanged)
}

func testTightened(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	p.say("tighten")
	if err := c.Check(); err != nil {
		t.Errorf("a caller that set no_new_privs: %v", err)
	}
}

// cgroupMount is where cgroup v2 is, here and in the guests.
func cgroupMount(t *testing.T) string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "tasks")); err != nil { // v1 has it
				return dir
			}
		}
	}
	t.Fatal("no cgroup v2 mount")
	return ""
}

// move moves a process to a cgroup of its own.
func move(t *testing.T, p *program) {
	t.Helper()
	root := cgroupMount(t)
	dir := filepath.Join(root, fmt.Sprintf("assay-caller-%d", p.Process.Pid))
	check(os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		p.stop()
		check(os.Remove(dir))
	})
	check(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.Process.Pid)), 0o600))
}

func testCgroup(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	move(t, p)
	wantRefusal(t, "a caller in another cgroup", c.Check(), MovedCgroup)
}

// writeMemory writes to another process's memory: what it says there does not matter.
func writeMemory(pid int) {
	f := must(os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0))
	defer f.Close()
	var from uint64
	maps := must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)))
	_, err := fmt.Sscanf(string(maps), "%x-", &from)
	check(err)
	b := make([]byte, 1)
	must(f.ReadAt(b, int64(from)))
	must(f.WriteAt(b, int64(from)))
}

func testTampered(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	if i := must(c.Now()).Integrity; i.Seen != 0 {
		t.Errorf("integrity %+v before", i)
	}
	writeMemory(p.Process.Pid)
	wantRefusal(t, "a caller whose memory was written", c.Check(), Tampered)
	again := start(t, "client", a.path) // another one is not touched by that
	again.word()
	if err := must(a.accept(t).Caller()).Check(); err != nil {
		t.Error(err)
	}
}

// testChanged: what happens to a caller reaches the agent at once, not when it is polled.
func testChanged(t *testing.T, a *agent) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- a.Events(ctx, a.Notify) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		name   string
		happen func(p *program)
		want   Reason
	}{
		{"exec", func(p *program) { fmt.Fprintln(p.in, "exec") }, Executed},
		{"tamper", func(p *program) { writeMemory(p.Process.Pid) }, Tampered},
		{"cgroup", func(p *program) { move(t, p) }, MovedCgroup},
	} {
		var took []time.Duration
		for range 5 {
			p, conn, caller := a.client(t)
			changed := caller.Changed()
			select {
			case <-changed:
				t.Errorf("%s: a change before it happened", c.name)
			default:
			}
			begin := time.Now()
			c.happen(p)
			deadline := time.After(10 * time.Second)
			for err := error(nil); err == nil; err = caller.Check() {
				select {
				case <-changed:
					changed = caller.Changed()
				case <-deadline:
					t.Fatalf("%s: the agent was not told", c.name)
				}
			}
			took = append(took, time.Since(begin))
			wantRefusal(t, c.name, caller.Check(), c.want)
			check(conn.Close())
			p.stop()
		}
		slices.Sort(took)
		t.Logf("%s: refused after %v (median of %d)", c.name, took[len(took)/2], len(took))
	}
}

func TestJudgeNow(t *testing.T) {
	good := record.Binding{CgroupID: 7, Credentials: record.Credentials{UID: 1}, Now: record.Now{Known: true, CgroupID: 7, Credentials: record.Credentials{UID: 1, NoNewPrivs: true, Seccomp: 2}}}
	if r := judgeNow(good); r != nil {
		t.Fatal(r)
	}
	for name, c := range map[string]struct {
		change func(b *record.Binding)
		reason Reason
	}{
		"cgroup":       {func(b *record.Binding) { b.Now.CgroupID = 8 }, MovedCgroup},
		"user":         {func(b *record.Binding) { b.Now.Credentials.FSUID = 8 }, CredentialsChanged},
		"capabilities": {func(b *record.Binding) { b.Now.Credentials.Effective = unix.CAP_SYS_TIME }, CredentialsChanged},
		"namespace":    {func(b *record.Binding) { b.Now.Credentials.Namespaces.Mount.Inode = 8 }, CredentialsChanged},
	} {
		b := good
		c.change(&b)
		if r := judgeNow(b); r == nil || r.Reason != c.reason {
			t.Errorf("%s: %v", name, r)
		}
	}
	unknown := good
	unknown.Now = record.Now{}
	if r := judgeNow(unknown); r != nil {
		t.Error(r)
	}
}
