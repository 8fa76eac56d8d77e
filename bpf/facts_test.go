// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// target has the same address in every process that runs this binary (which is not PIE).
var target = [8]byte{1, 2, 3, 4, 5, 6, 7, 8}

func targetAddress() uintptr { return uintptr(unsafe.Pointer(&target[0])) }

func (p *program) open(t *testing.T, name string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", p.Process.Pid, name), flag, 0)
	check(err)
	t.Cleanup(func() { f.Close() })
	return f
}

// attack is something that a process does to another one, and what each tier sees of it.
type attack struct {
	name   string
	do     func(t *testing.T, p *program)
	t1, t2 record.Tampering
}

func vm(call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) func(*testing.T, *program) {
	return func(t *testing.T, p *program) {
		buf := make([]byte, len(target))
		local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
		n, err := call(p.Process.Pid, local, []unix.RemoteIovec{{Base: targetAddress(), Len: len(buf)}}, 0)
		if n != len(buf) {
			t.Fatal(n, err)
		}
	}
}

var attacks = []attack{
	{"what ps does", func(t *testing.T, p *program) {
		for _, name := range []string{"status", "stat", "environ", "cmdline", "maps", "smaps", "auxv", "mounts", "cgroup"} {
			_, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Process.Pid, name))
			check(err)
		}
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.Process.Pid))
		check(err)
		_, err = os.ReadDir(fmt.Sprintf("/proc/%d/map_files", p.Process.Pid))
		check(err)
		check(unix.Kill(p.Process.Pid, 0))
	}, 0, 0},
	{"ptrace and poke", func(t *testing.T, p *program) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		check(unix.PtraceAttach(p.Process.Pid))
		_, err := unix.Wait4(p.Process.Pid, nil, 0, nil)
		check(err)
		_, err = unix.PtracePokeData(p.Process.Pid, targetAddress(), []byte("poked..."))
		check(err)
		check(unix.PtraceDetach(p.Process.Pid))
	}, record.PtraceAttached, record.PtraceAttached | record.MemoryWritten},
	{"ptrace seize and stop", func(t *testing.T, p *program) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		check(unix.PtraceSeize(p.Process.Pid))
		check(unix.PtraceInterrupt(p.Process.Pid))
		_, err := unix.Wait4(p.Process.Pid, nil, 0, nil)
		check(err)
		check(unix.PtraceDetach(p.Process.Pid))
	}, record.PtraceAttached, record.PtraceAttached},
	{"write to mem", func(t *testing.T, p *program) {
		_, err := p.open(t, "mem", os.O_WRONLY).WriteAt([]byte("written."), int64(targetAddress()))
		check(err)
	}, record.MemoryOpened, record.MemoryWritten},
	{"write to mem, seeking", func(t *testing.T, p *program) {
		f := p.open(t, "mem", os.O_RDWR)
		_, err := f.Seek(int64(targetAddress()), 0)
		check(err)
		_, err = f.Write([]byte("written."))
		check(err)
	}, record.MemoryOpened, record.MemoryWritten},
	{"read mem", func(t *testing.T, p *program) {
		_, err := p.open(t, "mem", os.O_RDONLY).ReadAt(make([]byte, 8), int64(targetAddress()))
		check(err)
	}, record.MemoryOpened, 0},
	{"process_vm_writev", vm(unix.ProcessVMWritev), record.MemoryWritten, record.MemoryWritten},
	{"process_vm_readv", vm(unix.ProcessVMReadv), record.MemoryRead, 0},
	{"pidfd_getfd", func(t *testing.T, p *program) {
		fd, err := unix.PidfdGetfd(p.pidfd, 1, 0)
		check(err)
		unix.Close(fd)
	}, record.DescriptorTaken, 0},
}

func testTampering(t *testing.T, s *Sensor) {
	for _, a := range attacks {
		p := start(t, "wait")
		p.word(t)
		before := mustTask(t, s, p.pidfd).Integrity
		a.do(t, p)
		after := mustTask(t, s, p.pidfd).Integrity
		want, sees := a.t1, record.Tampering(record.AllTampering)
		if s.Tier() == selectors.TierT2 {
			want, sees = a.t2, record.MemoryWritten
		}
		if before.Seen != 0 || before.Count != 0 || before.Sees != sees || before.Known != (sees == record.AllTampering) {
			t.Errorf("%s: before, integrity %+v", a.name, before)
		}
		if after.Seen != want || (after.Count > 0) != (want != 0) || after.Clean() != (after.Known && want == 0) {
			t.Errorf("%s: integrity %+v, want %v", a.name, after, want)
		}
		if want != 0 && (after.ByTGID != uint32(os.Getpid()) || after.ByExecID != me(t, s).Process.ExecID) {
			t.Errorf("%s: done by process %d, exec %d", a.name, after.ByTGID, after.ByExecID)
		}
		p.stop()
	}
}

// testOldCalls: a program may use the numbers that system calls have for 32-bit programs, among
// them those of harmless calls in 64 bits.
func testOldCalls(t *testing.T, s *Sensor) {
	if writes32 == nil {
		return
	}
	p := start(t, "wait")
	p.word(t)
	f := p.open(t, "mem", os.O_RDWR)
	_, err := f.Seek(int64(targetAddress()), 0)
	check(err)
	c := exec.Command(tiny(t, writes32))
	c.ExtraFiles = []*os.File{f}
	check(c.Run())
	want := record.MemoryWritten
	if s.Tier() == selectors.TierT1 {
		want = record.MemoryOpened
	}
	if i := mustTask(t, s, p.pidfd).Integrity; i.Seen != want {
		t.Errorf("integrity %+v after a write by a 32-bit call, want %v", i, want)
	}
}

// testTamperingStays: over an execve, and in a child.
func testTamperingStays(t *testing.T, s *Sensor) {
	p := start(t, "later")
	p.word(t)
	vm(unix.ProcessVMWritev)(t, p)
	fmt.Fprintln(p.in, "go on")
	var pid int
	for pid == 0 {
		_, _ = fmt.Sscanf(p.word(t), "child %d", &pid)
	}
	child, err := unix.PidfdOpen(pid, 0)
	check(err)
	defer unix.Close(child)
	for name, fd := range map[string]int{"executed": p.pidfd, "child": child} {
		if i := mustTask(t, s, fd).Integrity; !i.Seen.Has(record.MemoryWritten) || i.Clean() {
			t.Errorf("%s: integrity %+v, want the write to its memory", name, i)
		}
	}
}

func testTracedExec(t *testing.T, s *Sensor) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "ASSAY_ROLE=wait")
	pidfd := -1
	c.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd, Ptrace: true}
	check(c.Start())
	defer unix.Close(pidfd)
	_, err := unix.Wait4(c.Process.Pid, nil, 0, nil)
	check(err)
	i := mustTask(t, s, pidfd).Integrity
	check(c.Process.Kill())
	_ = c.Wait()
	if !i.Seen.Has(record.PtraceAttached) {
		t.Errorf("integrity %+v of a program that was started under a debugger", i)
	}
}

// public returns a listening socket that every user can reach.
func public(t *testing.T, s *Sensor) (fd int, path string) {
	dir, err := os.MkdirTemp("", "assay-test-")
	check(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	fd, path = clientSocket(), filepath.Join(dir, "socket")
	t.Cleanup(func() { unix.Close(fd) })
	check(s.Watch(fd, path))
	check(unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o777), unix.Listen(fd, 8)))
	return fd, path
}

func testCredentials(t *testing.T, s *Sensor) {
	l, path := public(t, s)
	connect := func(t *testing.T, attr syscall.SysProcAttr) (*program, record.Binding) {
		p := startAs(t, "connect", nil, attr, "ASSAY_SOCKET="+path)
		p.word(t)
		b, err := s.Binding(accept(t, l))
		if err != nil {
			t.Fatal(err)
		}
		if !b.Now.Known || b.Now.Credentials != b.Credentials || b.Now.CgroupID != b.CgroupID {
			t.Errorf("at connect %+v in %d, now %+v", b.Credentials, b.CgroupID, b.Now)
		}
		if now, err := s.Now(b.Task.Process); err != nil || now != b.Now {
			t.Errorf("asked by number: %+v, %v; want %+v", now, err, b.Now)
		}
		return p, b
	}
	t.Run("root", func(t *testing.T) {
		p, b := connect(t, syscall.SysProcAttr{})
		c, n := b.Credentials, b.Namespaces
		if c.UID != 0 || c.RealUID != 0 || c.NoNewPrivs != (statusOf(p, "NoNewPrivs") == "1") || fmt.Sprint(c.Seccomp) != statusOf(p, "Seccomp") {
			t.Errorf("credentials %+v", c)
		}
		if fmt.Sprintf("%016x", c.Effective) != statusOf(p, "CapEff") || fmt.Sprintf("%016x", c.Permitted) != statusOf(p, "CapPrm") {
			t.Errorf("capabilities %x of %x, /proc says %s of %s", c.Effective, c.Permitted, statusOf(p, "CapEff"), statusOf(p, "CapPrm"))
		}
		for kind, have := range map[string]record.Namespace{"user": n.User, "pid": n.PID, "mnt": n.Mount, "net": n.Network, "cgroup": n.Cgroup, "ipc": n.IPC, "uts": n.UTS} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.Process.Pid, kind))
			if check(err); link != fmt.Sprintf("%s:[%d]", kind, have.Inode) {
				t.Errorf("namespace %d, /proc says %s", have.Inode, link)
			}
		}
		if !n.Known || !n.User.Host || !n.PID.Host {
			t.Errorf("namespaces %+v, want the host's", n)
		}
	})
	t.Run("user", func(t *testing.T) {
		_, b := connect(t, syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 5678}})
		if c := b.Credentials; c.UID != 1234 || c.RealUID != 1234 || c.SavedUID != 1234 || c.FSUID != 1234 || c.GID != 5678 || c.FSGID != 5678 || c.Effective != 0 {
			t.Errorf("credentials %+v", c)
		}
	})
	t.Run("groups", func(t *testing.T) {
		for _, n := range []int{0, 1, record.MaxGroups, record.MaxGroups + 1} {
			groups := make([]uint32, n)
			for i := range groups {
				groups[i] = uint32(4_000_000_000 + i)
			}
			p, b := connect(t, syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}})
			got, known := b.Groups.List()
			if known != (n <= record.MaxGroups) || known && !slices.Equal(got, groups) {
				t.Errorf("%d groups are read as %v, %v", n, got, known)
			}
			if known && strings.Trim(fmt.Sprint(got), "[]") != statusOf(p, "Groups") {
				t.Errorf("groups %v, /proc says %q", got, statusOf(p, "Groups"))
			}
		}
	})
	t.Run("groups change", func(t *testing.T) {
		p, b := connect(t, syscall.SysProcAttr{})
		fmt.Fprintln(p.in)
		p.word(t)
		now, err := s.Now(b.Task.Process)
		if got, known := now.Credentials.Groups.List(); err != nil || !known || !slices.Equal(got, []uint32{11, 4321}) || now.Credentials == b.Credentials {
			t.Errorf("groups %v after setgroups, %v", got, err)
		}
	})
	t.Run("false root", func(t *testing.T) { // root of a user namespace, in truth 1234
		_, b := connect(t, syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Credential:  &syscall.Credential{},
			UidMappings: []syscall.SysProcIDMap{{HostID: 1234, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: 5678, Size: 1}},
		})
		c, n := b.Credentials, b.Namespaces
		if c.UID != 1234 || c.GID != 5678 || c.RealUID != 1234 || c.Effective == 0 {
			t.Errorf("credentials %+v of a false root", c)
		}
		if n.User.Host || n.PID.Host || n.Mount.Host || !n.Network.Host || n.UTS.Host || n.IPC.Host || n.User.Inode == 0 || n.PID.Inode == 0 {
			t.Errorf("namespaces %+v, want other ones than the host's", n)
		}
	})
}

func statusOf(p *program, name string) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	check(err)
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// startScript starts a script that this binary interprets, in a role.
func startScript(t *testing.T, role string) (p *program, path string) {
	t.Helper()
	self, err := os.Executable()
	check(err)
	path = filepath.Join(t.TempDir(), "script")
	check(os.WriteFile(path, []byte("#!"+self+"\n"), 0o700))
	p = startFile(t, path, role)
	p.word(t)
	return p, path
}

// mustExec returns what is known of the execve of a process; the zero ExecInfo is nothing.
func mustExec(t testing.TB, s *Sensor, pidfd int) record.ExecInfo {
	t.Helper()
	info, err := s.Exec(pidfd, mustTask(t, s, pidfd).Process.ExecID)
	if err != nil && err != record.ErrNoRecord {
		t.Fatal(err)
	}
	return info
}

// checkScript demands that a process is known to run a script.
func checkScript(t *testing.T, s *Sensor, pidfd int, path string) {
	t.Helper()
	task, info := mustTask(t, s, pidfd), mustExec(t, s, pidfd)
	var st, interpreter unix.Stat_t
	check(unix.Stat(path, &st))
	check(unix.Stat("/proc/self/exe", &interpreter))
	if !task.Flags.Has(record.Script) || task.Executable.Inode != interpreter.Ino || info.Path != path {
		t.Errorf("flags %#x, inode %d, path %q of script %s", task.Flags, task.Executable.Inode, info.Path, path)
	}
	x := info.Script
	if info.ScriptKnown != (s.Tier() == selectors.TierT1) || info.ScriptKnown && (x.Inode != st.Ino || x.StatDevice() != st.Dev || x.Size != uint64(st.Size) || x.ChangeTime.UnixNano() != st.Ctim.Nano()) {
		t.Errorf("script %+v, stat says %+v", info, st)
	}
	f, err := os.Open(path)
	check(err)
	defer f.Close()
	token, wgen, err := s.FileState(int(f.Fd()))
	if seen := s.kernel.On("on_file_open"); seen != (err == nil) || token != info.ScriptToken || wgen != info.ScriptWGen {
		t.Errorf("script's state %d/%d, %v; at the execve %d/%d", token, wgen, err, info.ScriptToken, info.ScriptWGen)
	}
}

func testScript(t *testing.T, s *Sensor) {
	p, path := startScript(t, "wait")
	checkScript(t, s, p.pidfd, path)
	if _, err := s.Exec(p.pidfd, 1); err != record.ErrNoRecord {
		t.Errorf("an execve that never was: %v", err)
	}
	p, path = startScript(t, "fork")
	child := p.forked(t)
	checkScript(t, s, child, path)
	p.stop()
	checkScript(t, s, child, path) // it outlives who executed it

	p, _ = startScript(t, "later") // becomes an image that is no script
	before := mustTask(t, s, p.pidfd).Process.ExecID
	fmt.Fprintln(p.in)
	p.word(t)
	for _, execID := range []uint64{before, mustTask(t, s, p.pidfd).Process.ExecID} {
		if info, err := s.Exec(p.pidfd, execID); err != record.ErrNoRecord {
			t.Errorf("%+v, %v of an image that is no script", info, err)
		}
	}
}
