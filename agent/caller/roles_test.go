// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test programs are this binary, executed again in a role. A client is told what to do
// by lines on its standard input and answers each with a line.
func TestMain(m *testing.M) {
	switch os.Getenv("ASSAY_ROLE") {
	case "":
		os.Exit(m.Run())
	case "client":
		playClient()
	case "wait":
		fmt.Println("ready")
		awaitEnd()
	case "attacker": // connects, leaves the socket to a child, exits
		spawn("wait", dial())
	case "holder": // uses the socket that it inherited as descriptor 3
		use(3)
		awaitEnd()
	case "splicer": // moves bytes out of the socket that it inherited as descriptor 3
		var pipe [2]int
		check(unix.Pipe(pipe[:]))
		_, err := unix.Splice(3, nil, pipe[1], nil, 16, unix.SPLICE_F_NONBLOCK)
		fmt.Println("spliced", err)
		awaitEnd()
	case "receiver": // uses the socket that it is passed over descriptor 3
		use(receive(3))
		awaitEnd()
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func must[T any](v T, err error) T { check(err); return v }

func awaitEnd() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n') }

func dial() int {
	fd := must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	check(unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("ASSAY_SOCKET")}))
	return fd
}

// spawn starts this binary in a role with a descriptor as its number 3 and our own streams.
func spawn(role string, fd int) {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "ASSAY_ROLE="+role)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{os.NewFile(uintptr(must(unix.Dup(fd))), "given")}
	check(c.Start())
	c.ExtraFiles[0].Close()
}

// use writes to somebody else's socket and says how that went.
func use(fd int) {
	switch _, err := unix.Write(fd, []byte("stolen")); {
	case err == nil:
		fmt.Println("wrote")
	case errors.Is(err, unix.EPERM):
		fmt.Println("forbidden")
	default:
		panic(err)
	}
}

func receive(over int) int {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(over, make([]byte, 1), oob, 0)
	check(err)
	messages := must(unix.ParseSocketControlMessage(oob[:n]))
	return must(unix.ParseUnixRights(&messages[0]))[0]
}

func playClient() {
	fd, err := strconv.Atoi(os.Getenv("ASSAY_FD"))
	if err == nil { // after "exec"
		fmt.Println("executed")
	} else {
		fd = dial()
		fmt.Println("connected")
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		playLine(in.Text(), fd)
	}
}

func playLine(line string, fd int) {
	switch line {
	case "write":
		must(unix.Write(fd, []byte("hello")))
		fmt.Println("wrote")
	case "dup":
		must(unix.Dup(fd))
		fmt.Println("done")
	case "close":
		check(unix.Close(fd))
		fmt.Println("done")
	case "inherit":
		spawn("holder", fd) // it answers
	case "splice":
		spawn("splicer", fd) // it answers
	case "pass":
		pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		spawn("receiver", pair[1]) // it answers
		check(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0))
	case "in flight":
		pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		check(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0))
		fmt.Println("done")
	case "block": // two threads, one in read(2), one in poll(2)
		go func() { _, _ = unix.Read(fd, make([]byte, 1)) }()
		go func() { _, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, -1) }()
		time.Sleep(50 * time.Millisecond)
		fmt.Println("done")
	case "ring": // has an io_uring
		var params [120]byte
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
		fmt.Println(errno)
	case "give descriptors": // sends the agent a descriptor
		check(unix.Sendmsg(fd, []byte("hello"), unix.UnixRights(0), nil, 0))
		fmt.Println("done")
	case "fork":
		forkAndWrite(fd)
	case "exec":
		must(unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)) // survives the execve
		os.Setenv("ASSAY_FD", strconv.Itoa(fd))
		check(syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ()))
	case "spawn":
		for range 300 {
			c := exec.Command("/proc/self/exe", "-test.run=^$")
			c.Env = []string{}
			check(c.Run())
		}
		fmt.Println("done")
	case "number":
		fmt.Println(fd)
	case "become somebody":
		check(unix.Setresuid(1234, 1234, 1234)) // all threads
		fmt.Println("done")
	case "join a group":
		check(syscall.Setgroups([]int{4321})) // all threads
		fmt.Println("done")
	case "tighten": // may be done at any time
		check(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fmt.Println("done")
	default:
		panic(line)
	}
}

var stolen = []byte("stolen")

// forkAndWrite forks without execve: the child is the same image in another process. It may
// only issue raw system calls.
func forkAndWrite(fd int) {
	pid, _, errno := syscall.RawSyscall(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0)
	if errno != 0 {
		panic(errno)
	}
	if pid == 0 {
		_, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&stolen[0])), uintptr(len(stolen)))
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
	var status unix.WaitStatus
	must(unix.Wait4(int(pid), &status, 0, nil))
	switch status.ExitStatus() {
	case 0:
		fmt.Println("wrote")
	case int(unix.EPERM):
		fmt.Println("forbidden")
	default:
		fmt.Println(status)
	}
}

// program is a test program that runs.
type program struct {
	t testing.TB
	*exec.Cmd
	in  *os.File
	out *bufio.Reader
	end *os.File
}

func startPath(t testing.TB, path, role, socket string) *program {
	t.Helper()
	p := &program{t: t, Cmd: exec.Command(path)}
	p.Env = append(os.Environ(), "ASSAY_ROLE="+role, "ASSAY_SOCKET="+socket)
	inR, inW, err := os.Pipe()
	check(err)
	outR, outW, err := os.Pipe()
	check(err)
	p.Stdin, p.Stdout, p.Stderr = inR, outW, os.Stderr
	p.in, p.end, p.out = inW, outR, bufio.NewReader(outR)
	err = p.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		p.closePipes()
		t.Fatal(err)
	}
	return p
}

func start(t testing.TB, role, socket string) *program {
	t.Helper()
	p := startPath(t, "/proc/self/exe", role, socket)
	t.Cleanup(p.stop)
	return p
}

func (p *program) say(line string) string {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, line)
	check(err)
	return p.word()
}

func (p *program) word() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the test program said nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

func (p *program) closePipes() {
	p.in.Close() // also ends the children, who share it
	p.end.Close()
}

func (p *program) stop() {
	p.closePipes()
	if p.ProcessState == nil {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}
