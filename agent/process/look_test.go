// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func pidfdOf(t *testing.T, pid int) int {
	t.Helper()
	fd := must(unix.PidfdOpen(pid, 0))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestLook(t *testing.T) {
	path := copyOf(t)
	prog := start(t, path, 7, 1234)
	fd := pidfdOf(t, prog.Process.Pid)
	s, err := Look("boot", fd)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	check(unix.Stat(path, &st))
	if s.Key.TGID != uint32(prog.Process.Pid) || s.Key.BootID != "boot" || s.Key.ExecID == 0 || s.Key.StartBoottime == 0 {
		t.Errorf("key %+v", s.Key)
	}
	if s.Image.Inode != st.Ino || s.Image.Device != st.Dev || s.Image.Links != 1 || s.Image.FSMagic == 0 {
		t.Errorf("image %+v, stat %+v", s.Image, st)
	}
	if s.UIDs[1] != 0 || !slices.Equal(s.Groups, []uint32{7, 1234}) || s.Effective == 0 {
		t.Errorf("status %+v", s.Status)
	}
	if s.CgroupPath == "" || s.CgroupID == 0 {
		t.Errorf("cgroup %q, %d", s.CgroupPath, s.CgroupID)
	}
	if key, err := KeyOf("boot", fd); err != nil || key != s.Key {
		t.Errorf("key %+v, then %+v, %v", s.Key, key, err)
	}
	check(prog.Process.Kill())
	_ = prog.Wait()
	if _, err := Look("boot", fd); !errors.Is(err, ErrGone) {
		t.Errorf("a process that is gone: %v", err)
	}
}

func TestPeer(t *testing.T) {
	fds := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd := must(Peer(fds[0]))
	defer unix.Close(fd)
	if key, err := KeyOf("", fd); err != nil || key.TGID != uint32(os.Getpid()) {
		t.Errorf("the peer of our own socket: %+v, %v", key, err)
	}
	l := must(net.Listen("tcp", "127.0.0.1:0")).(*net.TCPListener)
	defer l.Close()
	file := must(l.File())
	defer file.Close()
	if fd, err := Peer(int(file.Fd())); err == nil {
		unix.Close(fd)
		t.Error("a TCP socket has a peer process")
	}
}

// TestKeyChangesAtExec proves the mark: every execve makes another key, also one of the very
// same file, in the same process with the same arguments.
func TestKeyChangesAtExec(t *testing.T) {
	same := copyOf(t)
	prog := start(t, same)
	fd := pidfdOf(t, prog.Process.Pid)
	seen := map[uint64]bool{}
	for i := range 20 {
		key, err := KeyOf("", fd)
		if err != nil {
			t.Fatal(err)
		}
		if seen[key.ExecID] {
			t.Fatalf("execve %d gave no new key", i)
		}
		seen[key.ExecID] = true
		fmt.Fprintf(prog.in, "exec %s\n", same)
		prog.ready()
	}
}

// TestKeyWithoutRandomisation states the limit: who turned it off for himself is told
// from other files only.
func TestKeyWithoutRandomisation(t *testing.T) {
	const addrNoRandomize = 0x0040000
	same, other := copyOf(t), filepath.Join(t.TempDir(), "other")
	check(os.WriteFile(other, must(os.ReadFile(same)), 0o755))
	prog := &program{Cmd: exec.Command(same)}
	prog.Env = append(os.Environ(), "ASSAY_ROLE=wait")
	prog.in = must(prog.StdinPipe())
	prog.attachOut()
	runtime.LockOSThread() // the thread that forks gives its personality on
	was, _, errno := unix.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	_, _, _ = unix.Syscall(unix.SYS_PERSONALITY, was|addrNoRandomize, 0, 0)
	err := prog.Start()
	_, _, _ = unix.Syscall(unix.SYS_PERSONALITY, was, 0, 0)
	runtime.UnlockOSThread()
	check(err)
	t.Cleanup(prog.stop)
	prog.ready()
	fd := pidfdOf(t, prog.Process.Pid)
	key := must(KeyOf("", fd))
	fmt.Fprintf(prog.in, "exec %s\n", same)
	prog.ready()
	again := must(KeyOf("", fd))
	t.Logf("the same file again, without randomisation: the same key: %v", again == key)
	fmt.Fprintf(prog.in, "exec %s\n", other)
	prog.ready()
	if now := must(KeyOf("", fd)); now == again || now == key {
		t.Error("another file with the same content has the same key")
	}
}

func TestParseNumber(t *testing.T) {
	for in, want := range map[string]int{"pos:\t0\nPid:\t77\nNSpid:\t77\n": 77, "Pid:\t2147483647\n": 2147483647} {
		if got, err := parseNumber([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]error{"Pid:\t-1\n": ErrGone, "Pid:\t0\n": ErrNotSeen, "": nil, "Pid:\t-2\n": nil, "Pid:\tx\n": nil, "Pid:\t4294967296\n": nil} {
		if got, err := parseNumber([]byte(in)); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

func TestParseStart(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 250 20\n"
	for _, name := range []string{"(cat)", "(a) S 1 (b)", "(new\nline)"} {
		if got, err := parseStart([]byte("5 " + name + rest)); err != nil || got != 2_500_000_000 {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
	for _, in := range []string{"", "5 (x", "5 (x) S 1", "5 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99999999999999999999 1"} {
		if got, err := parseStart([]byte(in)); err == nil {
			t.Errorf("%q was read as %d", in, got)
		}
	}
}

func TestParseUnified(t *testing.T) {
	for in, want := range map[string]string{
		"1:name=systemd:/x\n0::/a/b.service\n": "/a/b.service", "0::/\n": "/", "": "", "1:name=systemd:/x\n": "",
		"0::/a (deleted)\n": "", "0::/../a\n": "", "0::a\n": "",
	} {
		if got := parseUnified([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseLook(f *testing.F) {
	f.Add([]byte("Pid:\t77\n"))
	f.Add([]byte("5 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20\n"))
	f.Add([]byte("0::/a\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if n, err := parseNumber(raw); err == nil && n < 1 {
			t.Errorf("number %d", n)
		}
		if path := parseUnified(raw); path != "" && path[0] != '/' {
			t.Errorf("path %q", path)
		}
		_, _ = parseStart(raw)
	})
}
