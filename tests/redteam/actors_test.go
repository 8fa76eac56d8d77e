// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// roles are what the test binary can be besides the tests. Which image plays one (the victim's or
// the attacker's) is for who starts it.
var roles = map[string]func(){
	// The victim's.
	"fetch":        func() { say(ask(connect())) },
	"fetch-block":  beBlocking,
	"wait":         beWaiting,
	"sleep":        func() { fmt.Println("ready"); time.Sleep(time.Hour) },
	"connect-wait": beConnected,
	"connect-fd3":  func() { check(connectFD(3)); fmt.Println("connected"); time.Sleep(time.Hour) },
	"inherit":      func() { lend("thief") },
	"inherit-dup":  func() { lend("thief-dup") },
	"inherit-cred": func() { lend("thief-credentials") },
	"inherit-ring": func() { lend("thief-ring") },
	"pass":         bePassing,
	"exec":         func() { execThief("thief", dial()) },
	"call-exec":    func() { execThief("thief-again", called()) },
	"call-inherit": func() { lendFD("thief-again", called()) },
	"exec-thread":  beExecutingThread,
	"fork":         func() { beForking(0) },
	"fork-read":    beReadByChild,
	"fork-queued":  beReadLater,
	"vfork":        func() { beForking(unix.CLONE_VM | unix.CLONE_VFORK) },
	"clone-vm":     func() { beForking(unix.CLONE_VM) },
	"clone-files":  func() { beForking(unix.CLONE_FILES) },
	"prefork":      bePrefork,

	// The attacker's.
	"thief":             func() { say(askFD(3)) },
	"thief-dup":         func() { check(unix.Dup3(3, 200, unix.O_CLOEXEC)); check(unix.Close(3)); say(askFD(200)) },
	"thief-again":       func() { say(sendFD(3, secondRequest)) },
	"thief-later":       func() { fmt.Println("ready"); awaitLine(); say(askFD(3)) },
	"thief-credentials": beForger,
	"thief-ring":        func() { say(askByRing(3)) },
	"receiver":          func() { say(askFD(receive(3))) },
	"abandon":           func() { startThief("thief-later", dial()) },
	"become":            beBecoming,
	"share":             beSharing,
	"liar":              beLiar,
	"mm-exe-file":       beWithOtherExe,
	"contain":           beContained,
	"memfd":             beMemfd,
	"start":             func() { runAs(os.Getenv("REDTEAM_VICTIM"), "fetch") },
	"ptrace":            bePtracer,
	"proc-mem":          beMemWriter,
	"vm-writev":         beVMWriter,
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](v T, err error) T { check(err); return v }

func say(v verdict) { fmt.Println(v) }

func deny(what string, err error) { say(verdict{denied: true, detail: what + ": " + errno(err)}) }

var stdin = bufio.NewReader(os.Stdin)

// awaitLine waits for a word of the test; without one the actor ends.
func awaitLine() string {
	line, err := stdin.ReadString('\n')
	if err != nil {
		os.Exit(0)
	}
	return strings.TrimSpace(line)
}

func connect() net.Conn { return must(net.Dial("unix", os.Getenv("REDTEAM_SOCKET"))) }

func socket() int { return must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)) }

func connectFD(fd int) error {
	return unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("REDTEAM_SOCKET")})
}

func dial() int { fd := socket(); check(connectFD(fd)); return fd }

// beBlocking reads as a program with threads and no event loop does: a thread of its own blocks
// in read(2) before another one asks.
func beBlocking() {
	fd := dial()
	time.AfterFunc(200*time.Millisecond, func() { must(unix.Write(fd, request)) })
	say(read(readFunc(func(p []byte) (int, error) {
		switch n, err := unix.Read(fd, p); {
		case err == unix.EINTR:
			return 0, nil
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	})))
}

// called is a connection over which this process has got its identity already.
func called() int {
	fd := dial()
	if v := askFD(must(unix.Dup(fd))); !v.delivered {
		panic(fmt.Sprint("the victim's own call: ", v))
	}
	return fd
}

// attacker is the path of the attacker's program, as seen by the victim's.
func attacker() string { return os.Getenv("REDTEAM_ATTACKER") }

func command(path, role string) *exec.Cmd {
	c := exec.Command(path)
	c.Env = append(os.Environ(), "REDTEAM_ROLE="+role)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c
}

// startThief starts the attacker's program in a role with a descriptor as its number 3.
func startThief(role string, fd int) *exec.Cmd {
	c := command(attacker(), role)
	f := os.NewFile(uintptr(fd), "lent")
	c.ExtraFiles = []*os.File{f}
	check(c.Start())
	runtime.KeepAlive(f)
	return c
}

// lend keeps its end of the connection while the thief uses the other.
func lend(role string) { lendFD(role, dial()) }

func lendFD(role string, fd int) {
	check(startThief(role, must(unix.Dup(fd))).Wait())
	runtime.KeepAlive(fd)
}

func runAs(path, role string) { check(command(path, role).Run()) }

// honest is code that the attackers change, marker is data.
//
//go:noinline
func honest() int { return 0 }

var marker = [8]byte{'h', 'o', 'n', 'e', 's', 't'}

// beWaiting fetches at each line, and tells what was changed in it; "work" makes it run its code only.
func beWaiting() {
	f := honest
	fmt.Println("ready", **(**uintptr)(unsafe.Pointer(&f)), uintptr(unsafe.Pointer(&marker)))
	for {
		if awaitLine() == "work" {
			fmt.Println("worked", honest())
			continue
		}
		fmt.Println("changed", honest() != 0 || marker[0] != 'h')
		c := connect()
		say(ask(c))
		c.Close()
	}
}

func beConnected() {
	fd := dial()
	fmt.Println("ready", fd)
	awaitLine()
	say(askFD(fd))
}

func bePassing() {
	fd := dial()
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	c := startThief("receiver", pair[1])
	check(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0))
	check(c.Wait())
}

func receive(over int) int {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(over, make([]byte, 1), oob, 0)
	check(err)
	messages := must(unix.ParseSocketControlMessage(oob[:n]))
	return must(unix.ParseUnixRights(&messages[0]))[0]
}

func execThief(role string, fd int) {
	if fd != 3 {
		check(unix.Dup3(fd, 3, 0))
		check(unix.Close(fd))
	}
	must(unix.FcntlInt(3, unix.F_SETFD, 0))
	check(os.Setenv("REDTEAM_ROLE", role))
	check(syscall.Exec(attacker(), []string{attacker()}, os.Environ()))
}

func beExecutingThread() {
	fd := dial()
	for {
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() != os.Getpid() {
				execThief("thief", fd)
			}
			select {}
		}()
		time.Sleep(100 * time.Millisecond)
	}
}

// beForger sends over the victim's connection and says that the victim did (unix(7): a process
// with CAP_SYS_ADMIN may).
func beForger() {
	cred := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getppid())})
	if err := unix.Sendmsg(3, request, cred, nil, 0); err != nil {
		say(verdict{detail: "write: " + errno(err)})
		return
	}
	c := must(net.FileConn(os.NewFile(3, "connection")))
	check(c.SetDeadline(time.Now().Add(patience())))
	say(read(c))
}

// beBecoming leaves the connection to a thief and becomes the victim's program.
func beBecoming() {
	startThief("thief-later", dial())
	check(os.Setenv("REDTEAM_ROLE", "sleep"))
	victim := os.Getenv("REDTEAM_VICTIM")
	check(syscall.Exec(victim, []string{victim}, os.Environ()))
}

// beSharing keeps the socket that the victim connects.
func beSharing() {
	fd := socket()
	c := command(os.Getenv("REDTEAM_VICTIM"), "connect-fd3")
	c.Stdout = nil
	c.ExtraFiles = []*os.File{os.NewFile(uintptr(must(unix.Dup(fd))), "shared")}
	out := must(c.StdoutPipe())
	check(c.Start())
	must(bufio.NewReader(out).ReadString('\n'))
	if err := connectFD(fd); err != unix.EISCONN {
		panic(fmt.Sprint("second connect: ", err))
	}
	say(askFD(fd))
	check(c.Process.Kill())
	_ = c.Wait()
}

func beLiar() {
	name := append([]byte("victim"), 0)
	check(unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0))
	say(ask(connect()))
}

// beContained is the first program of a container that shares the host's PID namespace.
func beContained() {
	victim := os.Getenv("REDTEAM_VICTIM")
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(unix.Mount(attacker(), victim, "", unix.MS_BIND, ""))
	check(unix.Sethostname([]byte("container")))
	runAs(victim, "fetch")
}

// beMemfd executes the victim's bytes out of memory.
func beMemfd() {
	fd := must(unix.MemfdCreate("victim", unix.MFD_ALLOW_SEALING))
	f := os.NewFile(uintptr(fd), "memfd")
	must(f.Write(must(os.ReadFile(os.Getenv("REDTEAM_VICTIM")))))
	if os.Getenv("REDTEAM_SEAL") != "" {
		must(unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL))
	}
	check(os.Setenv("REDTEAM_ROLE", "fetch"))
	check(syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"victim"}, os.Environ()))
}
