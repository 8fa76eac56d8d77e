// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// needKernel skips where the kernel or the privilege is missing, unless that is forbidden.
func needKernel(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if (errors.Is(err, ErrPrivilege) || errors.Is(err, ErrKernel) || errors.Is(err, ErrNoBTF) || errors.Is(err, os.ErrPermission)) && os.Getenv("ASSAY_NO_SKIP") != "1" {
		t.Skip(err)
	}
	t.Fatal(err)
}

// bpffs mounts a BPF file system for one test.
func bpffs(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpffs")
	check(os.Mkdir(dir, 0o700))
	needKernel(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, nil))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// load loads a sensor for one test and detaches it at the end.
func load(t testing.TB) *Sensor {
	t.Helper()
	pins := filepath.Join(bpffs(t), "assay")
	s, err := Load(Config{PinDir: pins, Logger: testLogger(t)})
	needKernel(t, err)
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), Unpin(pins)); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustTask(t testing.TB, s *Sensor, pidfd int) record.Task {
	t.Helper()
	task, err := s.Task(pidfd)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func me(t testing.TB, s *Sensor) record.Task {
	t.Helper()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	check(err)
	defer unix.Close(fd)
	return mustTask(t, s, fd)
}

func TestSensor(t *testing.T) {
	s := load(t)
	t.Logf("tier %s, hooks:", s.Tier())
	for _, h := range s.Hooks() {
		t.Logf("  %-32s %-12s %s", h.Name, h.State, h.Detail)
	}
	t.Run("SeededSelf", func(t *testing.T) { testSeededSelf(t, s) })
	t.Run("ForkAndExec", func(t *testing.T) { testForkAndExec(t, s) })
	t.Run("ExecInPlace", func(t *testing.T) { testExecInPlace(t, s, "exec") })
	t.Run("ExecFromThread", func(t *testing.T) { testExecInPlace(t, s, "thread-exec") })
	t.Run("Grandchild", func(t *testing.T) { testGrandchild(t, s) })
	t.Run("Truncated", func(t *testing.T) { testTruncated(t, s) })
	t.Run("LongLineage", func(t *testing.T) { testLongLineage(t, s) })
	t.Run("MemoryFile", func(t *testing.T) { testMemoryFile(t, s) })
	t.Run("Gone", func(t *testing.T) { testGone(t, s) })
	t.Run("Cgroup", func(t *testing.T) { testCgroup(t, s) })
	t.Run("Events", func(t *testing.T) { testEvents(t, s) })
	t.Run("Connect", func(t *testing.T) { testConnect(t, s) })
	if s.Tier() == selectors.TierT2 {
		t.Run("SharedConnect", func(t *testing.T) { testSharedConnect(t, s) })
	}
	t.Run("Tampering", func(t *testing.T) { testTampering(t, s) })
	t.Run("OldCalls", func(t *testing.T) { testOldCalls(t, s) })
	t.Run("TamperingStays", func(t *testing.T) { testTamperingStays(t, s) })
	t.Run("TracedExec", func(t *testing.T) { testTracedExec(t, s) })
	t.Run("Credentials", func(t *testing.T) { testCredentials(t, s) })
	t.Run("Script", func(t *testing.T) { testScript(t, s) })
	t.Run("FileState", func(t *testing.T) { testFileState(t, s) })
	t.Run("Code", func(t *testing.T) { testCode(t, s) })
	t.Run("SecondAgent", func(t *testing.T) {
		if _, err := Load(Config{PinDir: s.dir, Logger: testLogger(t)}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second Load on the same pins: %v, want ErrInUse", err)
		}
	})
	if n := s.Lost(); n != 0 {
		t.Errorf("%d records or events were lost", n)
	}
}

func testSeededSelf(t *testing.T, s *Sensor) {
	task := me(t, s)
	if !task.Flags.Has(record.Seeded) || task.Flags.Has(record.Observed) {
		t.Errorf("flags %#x, want seeded", task.Flags)
	}
	if task.Integrity.Known || task.Integrity.Sees != 0 {
		t.Errorf("integrity %+v of a process that ran before the sensor", task.Integrity)
	}
	if task.Process.TGID != uint32(os.Getpid()) || task.Process.BootID == "" {
		t.Errorf("key %+v of process %d", task.Process, os.Getpid())
	}
	var st unix.Stat_t
	check(unix.Stat("/proc/self/exe", &st))
	x := task.Executable
	if x.Inode != st.Ino || x.StatDevice() != st.Dev || x.Size != uint64(st.Size) || x.ChangeTime.UnixNano() != st.Ctim.Nano() || uint64(x.Links) != uint64(st.Nlink) {
		t.Errorf("executable %+v, stat says %+v", x, st)
	}
	if len(task.Ancestors) == 0 || task.Ancestors[0].Process.TGID != uint32(os.Getppid()) {
		t.Errorf("ancestors %+v, want the parent %d first", task.Ancestors, os.Getppid())
	}
	parent, err := unix.PidfdOpen(os.Getppid(), 0)
	check(err)
	defer unix.Close(parent)
	if got := mustTask(t, s, parent); len(task.Ancestors) > 0 && got.Flags.Has(record.Seeded) && got.Process != task.Ancestors[0].Process {
		t.Errorf("the parent is %+v, named as ancestor %+v", got.Process, task.Ancestors[0].Process)
	}
}

func testForkAndExec(t *testing.T, s *Sensor) {
	p := start(t, "wait")
	p.word(t)
	mine, task := me(t, s), mustTask(t, s, p.pidfd)
	if !task.Flags.Has(record.Observed) || task.Flags.Has(record.LineageUnknown) {
		t.Errorf("flags %#x, want observed with known lineage", task.Flags)
	}
	if task.Process.ExecID == mine.Process.ExecID || task.Process.TGID != uint32(p.Process.Pid) {
		t.Errorf("key %+v beside the parent's %+v", task.Process, mine.Process)
	}
	if task.UID != uint32(os.Geteuid()) || task.GID != uint32(os.Getegid()) {
		t.Errorf("credentials %d:%d", task.UID, task.GID)
	}
	a := task.Ancestors[0]
	if a.Process != mine.Process || a.Flags.Has(record.ReplacedInPlace) || a.Inode != mine.Executable.Inode {
		t.Errorf("parent %+v, want %+v", a, mine.Process)
	}
	if len(task.Ancestors) != min(len(mine.Ancestors)+1, record.MaxAncestors) {
		t.Errorf("%d ancestors, the parent has %d", len(task.Ancestors), len(mine.Ancestors))
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	check(err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	if ticks := fmt.Sprint(task.Process.StartBoottime / 1e7); fields[19] != ticks {
		t.Errorf("start %s ticks, /proc says %s", ticks, fields[19])
	}
}

// testExecInPlace: one process, three images: ours (forked), role, "wait".
func testExecInPlace(t *testing.T, s *Sensor, role string) {
	p := start(t, role)
	p.word(t)
	task := mustTask(t, s, p.pidfd)
	if task.Flags.Has(record.LineageUnknown) {
		for _, h := range s.Hooks() {
			if role == "thread-exec" && h.Program == "on_creds_for_exec" && h.State == hooks.Unavailable {
				return // no hook for it here, and the record says so
			}
		}
		t.Fatalf("flags %#x: lineage is unknown", task.Flags)
	}
	first, second := task.Ancestors[0], task.Ancestors[1]
	if first.Process.TGID != uint32(p.Process.Pid) || !first.Flags.Has(record.ReplacedInPlace|record.Observed) {
		t.Errorf("nearest ancestor %+v, want this process's former image", first)
	}
	if second.Process != me(t, s).Process {
		t.Errorf("second ancestor %+v, want this test", second)
	}
}

func testGrandchild(t *testing.T, s *Sensor) {
	p := start(t, "child")
	var pid int
	for pid == 0 {
		_, _ = fmt.Sscanf(p.word(t), "child %d", &pid)
	}
	p2, err := unix.PidfdOpen(pid, 0)
	check(err)
	defer unix.Close(p2)
	parent := mustTask(t, s, p.pidfd)
	var task record.Task
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if task = mustTask(t, s, p2); task.Process.ExecID != parent.Process.ExecID {
			break
		}
	}
	if len(task.Ancestors) < 2 || task.Ancestors[0].Process != parent.Process || task.Ancestors[1].Process != me(t, s).Process {
		t.Errorf("ancestors %+v, want %+v and this test", task.Ancestors, parent.Process)
	}
}

func testTruncated(t *testing.T, s *Sensor) {
	p := start(t, "deep", "ASSAY_DEPTH="+strings.Repeat("x", record.MaxAncestors))
	p.word(t)
	task := mustTask(t, s, p.pidfd)
	if !task.Flags.Has(record.Truncated) || len(task.Ancestors) != record.MaxAncestors {
		t.Errorf("flags %#x, %d ancestors; want a full, truncated list", task.Flags, len(task.Ancestors))
	}
	for i := range task.Ancestors[1:] {
		if task.Ancestors[i].Process.ExecID <= task.Ancestors[i+1].Process.ExecID {
			t.Errorf("ancestors %d and %d are not nearest first", i, i+1)
		}
	}
}

func testMemoryFile(t *testing.T, s *Sensor) {
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC)
	check(err)
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	self, err := os.Open("/proc/self/exe")
	check(err)
	defer self.Close()
	_, err = io.Copy(f, self)
	check(err)
	c := exec.Command(fmt.Sprintf("/proc/self/fd/%d", 3))
	c.ExtraFiles = []*os.File{f}
	c.Env = append(os.Environ(), "ASSAY_ROLE=wait")
	pidfd := -1
	c.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	in, err := c.StdinPipe()
	check(err)
	out, err := c.StdoutPipe()
	check(err)
	check(c.Start())
	defer unix.Close(pidfd)
	_, _ = bufio.NewReader(out).ReadString('\n')
	task := mustTask(t, s, pidfd)
	if !task.Flags.Has(record.Deleted | record.MemoryFile) {
		t.Errorf("flags %#x of a program in a memfd", task.Flags)
	}
	in.Close()
	check(c.Wait())
}

func testGone(t *testing.T, s *Sensor) {
	p := start(t, "wait")
	p.word(t)
	fd, err := unix.Dup(p.pidfd)
	check(err)
	defer unix.Close(fd)
	p.stop()
	if _, err := s.Key(fd); !errors.Is(err, record.ErrNoRecord) {
		t.Errorf("key of a reaped process: %v, want ErrNoRecord", err)
	}
}

func testCgroup(t *testing.T, s *Sensor) {
	dir := filepath.Join(s.cgroup.Mount, fmt.Sprintf("assay-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	p := start(t, "wait")
	p.word(t)
	if path, err := s.CgroupPath(mustTask(t, s, p.pidfd).CgroupID); err != nil || !strings.HasPrefix(path, "/") {
		t.Errorf("cgroup path %q: %v", path, err)
	}
	p.stop()
	var st unix.Stat_t
	check(unix.Stat(dir, &st))
	if path, err := s.CgroupPath(st.Ino); err != nil || path != "/"+filepath.Base(dir) {
		t.Errorf("cgroup path %q: %v", path, err)
	}
	check(os.Remove(dir))
	if path, err := s.CgroupPath(st.Ino); err == nil {
		t.Errorf("a removed cgroup has the path %q", path)
	}
}

func testEvents(t *testing.T, s *Sensor) {
	p := start(t, "wait")
	p.word(t)
	want := mustTask(t, s, p.pidfd)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var found bool
	err := s.Events(ctx, func(e record.Event) {
		if e.Process == want.Process {
			found = e.ParentExecID == want.Ancestors[0].Process.ExecID && e.Inode == want.Executable.Inode && e.Flags == want.Flags
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || !found {
		t.Errorf("the event of an execve was not delivered as recorded: %v", err)
	}
}

// listen returns a listening socket that the sensor watches, and its address.
func listen(t testing.TB, s *Sensor, backlog int) (fd int, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	fd = clientSocket()
	t.Cleanup(func() { unix.Close(fd) })
	check(s.Watch(fd, path))
	check(unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(unix.Listen(fd, backlog))
	return fd, path
}

func accept(t testing.TB, listener int) int {
	t.Helper()
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	check(err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func testConnect(t *testing.T, s *Sensor) {
	l, path := listen(t, s, 8)
	p := start(t, "connect", "ASSAY_SOCKET="+path)
	p.word(t)
	conn, want := accept(t, l), mustTask(t, s, p.pidfd)
	b, err := s.Binding(conn)
	if err != nil {
		t.Fatal(err)
	}
	if b.Task.Process != want.Process || b.Shared || b.PeerDiffers || b.Tier != s.Tier() || len(b.Task.Ancestors) != len(want.Ancestors) {
		t.Errorf("binding %+v, want %+v", b, want)
	}
	if b.UID != uint32(os.Geteuid()) || b.CgroupID != want.CgroupID || b.Connected <= want.Process.StartBoottime {
		t.Errorf("binding at connect %+v", b)
	}
	if h := b.Holder; s.Tier() == selectors.TierT2 && (!h.Alive || h.Closed || h.ExecID != want.Process.ExecID || h.Held != h.References || h.Held != 1 || h.Tables != h.Threads) {
		t.Errorf("holder %+v, want only the caller", h)
	}
	p.stop()
	b, err = s.Binding(conn)
	if err != nil || b.Task.Process != want.Process {
		t.Errorf("binding after the caller died: %+v, %v", b, err)
	}
	if s.Tier() == selectors.TierT2 && (b.Holder.Alive || !b.Holder.Closed) {
		t.Errorf("holder after the caller died: %+v", b.Holder)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if _, err := s.Binding(pair[0]); !errors.Is(err, record.ErrNoBinding) {
		t.Errorf("binding of a socketpair: %v, want ErrNoBinding", err)
	}
}

// testSharedConnect: this process fails to connect a socket, a child that shares it succeeds.
func testSharedConnect(t *testing.T, s *Sensor) {
	l, path := listen(t, s, 8)
	fd := clientSocket()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(filepath.Dir(path), "missing", filepath.Base(path))}); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	p := startWith(t, "connect-inherited", []*os.File{f}, "ASSAY_SOCKET="+path)
	if w := p.word(t); w != "ready" {
		t.Fatal(w)
	}
	b, err := s.Binding(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	if !b.Shared || !b.PeerDiffers {
		t.Errorf("binding %+v, want it marked as shared", b)
	}
	// a connected socket is left alone
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); !errors.Is(err, unix.EISCONN) {
		t.Error(err)
	}
}
