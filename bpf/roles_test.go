// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

// The test programs are this binary, executed again.
func TestMain(m *testing.M) {
	if role := os.Getenv("ASSAY_ROLE"); role != "" {
		playRole(role)
		return
	}
	os.Exit(m.Run())
}

func playRole(role string) {
	say := func(word string) { fmt.Println(word) }
	wait := func() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n') }
	switch role {
	case "wait":
		say("ready")
		wait()
	case "exec": // becomes "wait" in place
		os.Setenv("ASSAY_ROLE", "wait")
		check(syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ()))
	case "later": // becomes "child" when told to
		say("ready")
		wait()
		os.Setenv("ASSAY_ROLE", "child")
		check(syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ()))
	case "code":
		playCode()
	case "fork": // has a child that runs the same image, when told to
		say("ready")
		wait()
		fmt.Println(fork())
		wait()
	case "load":
		playLoad()
	case "take-over":
		playTakeOver()
	case "bomb":
		playBomb()
	case "protected":
		s, err := Load(Config{PinDir: os.Getenv("ASSAY_PINS"), DataDir: os.Getenv("ASSAY_DATA"), Protect: true, Logger: slog.New(slog.DiscardHandler)})
		check(err)
		m, err := s.kernel.Maps["tasks"].Info()
		check(err)
		id, _ := m.ID()
		l, err := s.kernel.Links["on_exec"].Info()
		check(err)
		fmt.Println(id, l.Program, l.ID)
		_ = s.Events(context.Background(), func(e record.Event) {
			if e.Kind == record.EventRefused {
				fmt.Println(e.Process.TGID, e.UID, uint32(e.Refused), e.Process.ExecID, s.Refused())
			}
		})
	case "try": // connects once
		fd := clientSocket()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("ASSAY_SOCKET")}); err != nil {
			say(err.Error())
		} else {
			say("connected")
		}
	case "thread-exec": // the same, from a thread that is not the leader
		os.Setenv("ASSAY_ROLE", "wait")
		runtime.LockOSThread()
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == unix.Getpid() {
				panic("this is the leader")
			}
			check(syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ()))
		}()
		select {}
	case "child": // starts "wait" as a child and hands through its streams
		os.Setenv("ASSAY_ROLE", "wait")
		c := exec.Command("/proc/self/exe")
		c.Stdin, c.Stdout = os.Stdin, os.Stdout
		check(c.Start())
		fmt.Println("child", c.Process.Pid)
		check(c.Wait())
	case "deep": // executes itself n times, and then as another role
		n := os.Getenv("ASSAY_DEPTH")
		if n == "" {
			os.Setenv("ASSAY_ROLE", cmp.Or(os.Getenv("ASSAY_THEN"), "wait"))
		} else {
			os.Setenv("ASSAY_DEPTH", n[1:])
		}
		check(syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ()))
	case "connect": // connects to a socket with one descriptor, again if it fails
		fd := clientSocket()
		for unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("ASSAY_SOCKET")}) != nil {
			time.Sleep(time.Millisecond)
		}
		say("ready")
		wait()
		check(syscall.Setgroups([]int{4321, 11}))
		say("groups")
		wait()
	case "connect-inherited": // connects descriptor 3
		if err := unix.Connect(3, &unix.SockaddrUnix{Name: os.Getenv("ASSAY_SOCKET")}); err != nil {
			say("failed " + err.Error())
		} else {
			say("ready")
		}
		wait()
	}
}

// playCode maps a file as code, forks, and makes anonymous memory executable, each when told to.
func playCode() {
	in := bufio.NewReader(os.Stdin)
	wait := func() { _, _ = in.ReadString('\n') }
	fmt.Println("ready")
	wait()
	f, err := os.Open(os.Getenv("ASSAY_FILE"))
	check(err)
	_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	check(err)
	fmt.Println("mapped")
	wait()
	fmt.Println(fork())
	wait()
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	check(err)
	check(unix.Mprotect(memory, unix.PROT_READ|unix.PROT_EXEC))
	fmt.Println("anonymous")
	wait()
}

// fork returns in the parent only; the child sleeps for ever.
func fork() (pid uintptr) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		panic(errno)
	}
	for pid == 0 {
		syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
	return pid
}

// forked reads the number of a child that fork made, and pins it until the test ends.
func (p *program) forked(t *testing.T) (pidfd int) {
	t.Helper()
	fmt.Fprintln(p.in)
	var pid int
	_, err := fmt.Sscan(p.word(t), &pid)
	check(err)
	pidfd, err = unix.PidfdOpen(pid, 0)
	check(err)
	t.Cleanup(func() {
		check(unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0))
		unix.Close(pidfd)
	})
	return pidfd
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func clientSocket() int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	return fd
}

// program is a test program that runs.
type program struct {
	*exec.Cmd
	pidfd int
	out   *bufio.Reader
	in    io.WriteCloser
}

// start runs this binary in a role and waits for its first word.
func start(t testing.TB, role string, env ...string) *program {
	t.Helper()
	return startWith(t, role, nil, env...)
}

func startWith(t testing.TB, role string, files []*os.File, env ...string) *program {
	t.Helper()
	return startAs(t, role, files, syscall.SysProcAttr{}, env...)
}

// startFile runs a copy of this binary.
func startFile(t testing.TB, path, role string, env ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(path), pidfd: -1}
	return p.start(t, role, nil, syscall.SysProcAttr{}, env...)
}

func startAs(t testing.TB, role string, files []*os.File, attr syscall.SysProcAttr, env ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command("/proc/self/exe"), pidfd: -1}
	return p.start(t, role, files, attr, env...)
}

func (p *program) start(t testing.TB, role string, files []*os.File, attr syscall.SysProcAttr, env ...string) *program {
	t.Helper()
	p.Env = append(append(os.Environ(), "ASSAY_ROLE="+role), env...)
	p.Stderr, p.ExtraFiles = os.Stderr, files
	attr.PidFD, attr.Pdeathsig = &p.pidfd, syscall.SIGKILL
	p.SysProcAttr = &attr
	in, err := p.StdinPipe()
	check(err)
	out, err := p.StdoutPipe()
	check(err)
	p.in, p.out = in, bufio.NewReader(out)
	runtime.LockOSThread() // Pdeathsig is about the thread
	t.Cleanup(runtime.UnlockOSThread)
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *program) word(t testing.TB) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the test program said nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

func (p *program) stop() {
	if p.pidfd >= 0 {
		p.in.Close()
		_ = p.Process.Kill()
		_ = p.Wait()
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}
