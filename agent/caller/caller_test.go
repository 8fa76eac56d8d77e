// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

var quiet = slog.New(slog.DiscardHandler)

// needKernel skips where the kernel or the privilege is missing, unless that is forbidden.
func needKernel(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if (errors.Is(err, bpf.ErrPrivilege) || errors.Is(err, bpf.ErrKernel) || errors.Is(err, bpf.ErrNoBTF) || errors.Is(err, os.ErrPermission)) && os.Getenv("ASSAY_NO_SKIP") != "1" {
		t.Skip(err)
	}
	t.Fatal(err)
}

func loadSensor(t testing.TB) *bpf.Sensor {
	t.Helper()
	mount := filepath.Join(t.TempDir(), "bpffs")
	check(os.Mkdir(mount, 0o700))
	needKernel(t, unix.Mount("bpf", mount, "bpf", 0, ""))
	t.Cleanup(func() { check(unix.Unmount(mount, 0)) })
	pins := filepath.Join(mount, "assay")
	s, err := bpf.Load(bpf.Config{PinDir: pins, Logger: quiet})
	needKernel(t, err)
	t.Cleanup(func() { check(errors.Join(s.Close(), bpf.Unpin(pins))) })
	return s
}

type agent struct {
	*bpf.Sensor // nil at T3
	*Listener
	binder Binder
	path   string
}

func startAgent(t testing.TB) *agent {
	t.Helper()
	s := loadSensor(t)
	return listen(t, &agent{Sensor: s, binder: s})
}

func listen(t testing.TB, a *agent) *agent {
	t.Helper()
	a.path = filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(context.Background(), Config{Path: a.path, Mode: 0o777, Binder: a.binder, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	a.Listener = l
	return a
}

func (a *agent) Tier() selectors.Tier {
	if a.Sensor == nil {
		return selectors.TierT3
	}
	return a.Sensor.Tier()
}

func (a *agent) Close() error { return a.Listener.Close() }

// gate reports whether the kernel refuses strangers the use of a caller's socket.
func (a *agent) gate() bool {
	if a.Sensor == nil {
		return false
	}
	for _, h := range a.Hooks() {
		if h.Name == "lsm/socket_sendmsg" {
			return h.State == hooks.On
		}
	}
	return false
}

func (a *agent) accept(t testing.TB) *Conn {
	t.Helper()
	c, err := a.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	check(c.SetReadDeadline(time.Now().Add(10 * time.Second)))
	return c.(*Conn)
}

// client starts a client and returns it with its connection.
func (a *agent) client(t testing.TB) (*program, *Conn, *Caller) {
	t.Helper()
	p := start(t, "client", a.path)
	p.word()
	conn := a.accept(t)
	c, err := conn.Caller()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatalf("a caller that did nothing: %v", err)
	}
	return p, conn, c
}

// wantRefusal demands a refusal with one of the reasons.
func wantRefusal(t testing.TB, what string, err error, reasons ...Reason) {
	t.Helper()
	var r *Refusal
	if errors.As(err, &r) {
		for _, reason := range reasons {
			if r.Reason == reason {
				return
			}
		}
	}
	t.Errorf("%s: %v, want a refusal for %v", what, err, reasons)
}

func TestCaller(t *testing.T) {
	a := startAgent(t)
	t.Logf("tier %s", a.Tier())
	for name, test := range map[string]func(*testing.T, *agent){
		"Served": testServed, "Exit": testExit, "Exec": testExec, "Fork": testFork, "Inherit": testInherit,
		"Pass": testPass, "GetFD": testGetFD, "Splice": testSplice, "Descriptors": testDescriptors, "Spawning": testSpawning,
		"GRPC": testGRPC, "GRPCRefused": testGRPCRefused, "SecondAgent": testSecondAgent, "CloseLetsGo": testCloseLetsGo,
		"Credentials": testCredentials, "Tightened": testTightened, "Cgroup": testCgroup, "Tampered": testTampered, "Changed": testChanged,
	} {
		t.Run(name, func(t *testing.T) { test(t, a) })
	}
	if a.Tier() == selectors.TierT2 {
		t.Run("Blocked", func(t *testing.T) { testBlocked(t, a) })
		t.Run("InFlight", func(t *testing.T) {
			p, _, c := a.client(t)
			p.say("in flight")
			wantRefusal(t, "a socket in flight", c.Check(), HandedOver)
		})
	}
}

func testServed(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	if c.Key().TGID != uint32(p.Process.Pid) || c.Credentials().UID != uint32(os.Geteuid()) || c.Credentials().GID != uint32(os.Getegid()) || c.CgroupID() == 0 {
		t.Errorf("caller %+v of process %d", c.binding, p.Process.Pid)
	}
	if c.Task().Process != c.Process().Key() {
		t.Errorf("caller %+v", c.Task())
	}
	p.say("dup")
	p.say("write")
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if err := c.Check(); err != nil {
		t.Errorf("a caller that duplicated its descriptor: %v", err)
	}
}

func testExit(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	done := c.Done()
	check(p.Process.Kill())
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the exit was not noticed")
	}
	wantRefusal(t, "a dead caller", c.Check(), Gone, Closed)
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %d, %v after the caller's end", n, err)
	}
}

func testExec(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	if w := p.say("exec"); w != "executed" {
		t.Fatal(w)
	}
	wantRefusal(t, "another image in the same process", c.Check(), Executed)
}

// stolenBy demands that what another process does with the socket is refused.
func stolenBy(t *testing.T, a *agent, conn *Conn, c *Caller, word string) {
	t.Helper()
	if gate := a.gate(); word == "forbidden" != gate {
		t.Fatalf("the other process says %q, and the kernel refuses strangers: %v", word, gate)
	}
	if word == "forbidden" {
		check(conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)))
		if n, err := conn.Read(make([]byte, 16)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes of another process, %v", n, err)
		}
	} else if n, err := conn.Read(make([]byte, 16)); n != 0 {
		t.Errorf("read %d bytes of another process", n)
	} else {
		wantRefusal(t, "reading bytes of another process", err, HandedOver)
	}
	wantRefusal(t, "checking after another process wrote", c.Check(), HandedOver)
}

func testFork(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	stolenBy(t, a, conn, c, p.say("fork"))
}

func testInherit(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	word := p.say("inherit")
	wantRefusal(t, "an inherited socket", c.Check(), HandedOver)
	stolenBy(t, a, conn, c, word)
}

// testSplice: splice(2) out of a socket passes no LSM hook for messages.
func testSplice(t *testing.T, a *agent) {
	if a.Tier() == selectors.TierT1 {
		for _, h := range a.Hooks() {
			if h.Name == "fentry/unix_stream_splice_read" && h.State != hooks.On {
				needKernel(t, fmt.Errorf("%w: %s: %s", bpf.ErrKernel, h.Name, h.Detail))
			}
		}
	}
	p, _, c := a.client(t)
	p.say("splice")
	wantRefusal(t, "a socket that another process splices", c.Check(), HandedOver)
}

func testPass(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	word := p.say("pass")
	wantRefusal(t, "a passed socket", c.Check(), HandedOver)
	stolenBy(t, a, conn, c, word)
}

func testGetFD(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	var fd int
	_, err := fmt.Sscan(p.say("number"), &fd)
	check(err)
	pidfd := must(unix.PidfdOpen(p.Process.Pid, 0))
	defer unix.Close(pidfd)
	taken := must(unix.PidfdGetfd(pidfd, fd, 0))
	defer unix.Close(taken)
	wantRefusal(t, "a socket taken by pidfd_getfd", c.Check(), HandedOver)
}

func testDescriptors(t *testing.T, a *agent) {
	p, conn, c := a.client(t)
	before := len(must(os.ReadDir("/proc/self/fd")))
	p.say("give descriptors")
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if after := len(must(os.ReadDir("/proc/self/fd"))); after > before {
		t.Errorf("a caller left %d descriptors here", after-before)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

// testSpawning: a caller that starts programs all the time is never refused, though each
// child holds the socket between fork and execve.
func testSpawning(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	fmt.Fprintln(p.in, "spawn")
	checks := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); checks++ {
		if err := c.Check(); err != nil {
			t.Fatalf("check %d: %v", checks, err)
		}
	}
	t.Logf("%d checks", checks)
}

func testCloseLetsGo(t *testing.T, a *agent) {
	_, conn, c := a.client(t)
	done := c.Done()
	check(conn.Close())
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a closed connection does not let its process go")
	}
	wantRefusal(t, "a closed connection", c.Check(), Closed)
}

// serve runs a gRPC server that answers every call with who called.
func serve(t *testing.T, l net.Listener) {
	server := grpc.NewServer(grpc.Creds(Credentials()), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		c, err := FromContext(s.Context())
		if err == nil {
			err = c.Check()
		}
		if err != nil {
			return status.Error(codes.PermissionDenied, err.Error())
		}
		return status.Errorf(codes.Aborted, "process %d", c.Key().TGID)
	}))
	ended := make(chan error)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); check(<-ended) })
}

func call(t *testing.T, path string) *status.Status {
	t.Helper()
	conn := must(grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/who/AmI")
	check(err)
	check(s.CloseSend())
	return status.Convert(s.RecvMsg(nil))
}

func testGRPC(t *testing.T, a *agent) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, must(Listen(context.Background(), Config{Path: path, Mode: 0o700, Binder: a.binder, Logger: quiet})))
	if got := call(t, path); got.Code() != codes.Aborted || got.Message() != fmt.Sprint("process ", os.Getpid()) {
		t.Errorf("answer %v", got)
	}
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o700 {
		t.Errorf("socket permissions %v", info.Mode())
	}
}

// blind is a sensor that does not see who connects: a fault.
type blind struct{ *bpf.Sensor }

func (blind) Binding(int) (record.Binding, error) { return record.Binding{}, record.ErrNoBinding }

func testGRPCRefused(t *testing.T, a *agent) {
	path := filepath.Join(t.TempDir(), "s")
	var log strings.Builder
	serve(t, must(Listen(context.Background(), Config{Path: path, Mode: 0o777, Binder: blind{a.Sensor}, Logger: slog.New(slog.NewTextHandler(&log, nil))})))
	if got := call(t, path); got.Code() != codes.PermissionDenied || !strings.Contains(got.Message(), string(NoBinding)) {
		t.Errorf("answer %v", got)
	}
	if !strings.Contains(log.String(), string(NoBinding)) {
		t.Errorf("the log does not say why: %s", log.String())
	}
	if _, err := FromContext(context.Background()); err == nil {
		t.Error("a context without a connection has a caller")
	}
}

func testSecondAgent(t *testing.T, a *agent) {
	_, err := Listen(context.Background(), Config{Path: a.path, Mode: 0o777, Binder: a.binder, Logger: quiet})
	if err == nil || !strings.Contains(err.Error(), "second agent") {
		t.Errorf("a second agent on the socket: %v", err)
	}
	a.accept(t).Close() // the question of the second one
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	check(os.WriteFile(file, nil, 0o600))
	if _, err := Listen(context.Background(), Config{Path: file, Mode: 0o777, Binder: a.binder, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in the socket's place: %v", err)
	}
	stale := filepath.Join(dir, "stale")
	l := must(net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"}))
	l.SetUnlinkOnClose(false)
	check(l.Close())
	again, err := Listen(context.Background(), Config{Path: stale, Mode: 0o777, Binder: a.binder, Logger: quiet})
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	check(again.Close())
}

func TestJudge(t *testing.T) {
	key := selectors.ProcessKey{BootID: "b", TGID: 7, StartBoottime: 1, ExecID: 5}
	good := record.Binding{Tier: selectors.TierT2, Task: record.Task{Process: key},
		Holder: record.Holder{Alive: true, ExecID: 5, References: 2, Held: 2, Tables: 3, Threads: 3}}
	if r, _ := judge(good, key); r != nil {
		t.Fatal(r)
	}
	for name, c := range map[string]struct {
		change  func(b *record.Binding)
		reason  Reason
		passing bool
	}{
		"other process":  {func(b *record.Binding) { b.Task.Process.StartBoottime = 2 }, Replaced, false},
		"shared":         {func(b *record.Binding) { b.Shared = true }, SharedSocket, false},
		"peer differs":   {func(b *record.Binding) { b.PeerDiffers = true }, SharedSocket, false},
		"handed at t1":   {func(b *record.Binding) { b.Tier, b.Handed = selectors.TierT1, record.HandedPass }, HandedOver, false},
		"closed":         {func(b *record.Binding) { b.Holder.Closed = true }, Closed, false},
		"dead":           {func(b *record.Binding) { b.Holder.Alive = false }, Gone, false},
		"executed":       {func(b *record.Binding) { b.Holder.ExecID = 6 }, Executed, false},
		"in flight":      {func(b *record.Binding) { b.Holder.InFlight = true }, HandedOver, false},
		"let go":         {func(b *record.Binding) { b.Holder.Held = 0 }, HandedOver, true},
		"shared table":   {func(b *record.Binding) { b.Holder.Tables = 4 }, HandedOver, true},
		"another holder": {func(b *record.Binding) { b.Holder.References = 3 }, HandedOver, true},
	} {
		b := good
		c.change(&b)
		if r, passing := judge(b, key); r == nil || r.Reason != c.reason || passing != c.passing {
			t.Errorf("%s: %v, passing %v", name, r, passing)
		}
	}
}

func TestJudgeSender(t *testing.T) {
	message := func(pid int32) []byte { return unix.UnixCredentials(&unix.Ucred{Pid: pid}) }
	for _, c := range []struct {
		oob     []byte
		stamped bool
		served  bool
	}{
		{message(7), true, true}, {message(7), false, true}, {message(8), true, false}, {message(8), false, false},
		{message(0), true, false}, {message(0), false, true}, {nil, true, false}, {nil, false, true},
	} {
		if r := judgeSender(c.oob, 7, c.stamped); (r == nil) != c.served {
			t.Errorf("message %v, stamped %v: %v", c.oob, c.stamped, r)
		}
	}
}

func FuzzParseSender(f *testing.F) {
	f.Add(unix.UnixCredentials(&unix.Ucred{Pid: 7, Uid: 1, Gid: 2}))
	f.Add(unix.UnixRights(0, 1))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if pid, ok := parseSender(oob); !ok && pid != 0 {
			t.Errorf("pid %d out of nothing", pid)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	a := startAgent(b)
	_, _, c := a.client(b)
	for b.Loop() {
		if err := c.Check(); err != nil {
			b.Fatal(err)
		}
	}
}
