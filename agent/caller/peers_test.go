// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// withPeers runs a test at T3. Before Linux 6.5 there is no such tier, and NewPeers must say so.
func withPeers[T testing.TB](t T, test func(T, *agent)) {
	t.Helper()
	p, err := NewPeers()
	if before6_5() {
		if err == nil || !strings.Contains(err.Error(), "boot Linux 6.5 or later") {
			t.Errorf("tier t3 on an old kernel: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	test(t, listen(t, &agent{binder: p}))
}

func before6_5() bool {
	var u unix.Utsname
	check(unix.Uname(&u))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	check(err)
	return major < 6 || major == 6 && minor < 5
}

// TestPeers runs at T3 what is seen there.
func TestPeers(t *testing.T) { withPeers(t, testPeers) }

func testPeers(t *testing.T, a *agent) {
	for name, test := range map[string]func(*testing.T, *agent){
		"Served": testServed, "Exit": testExit, "Exec": testExec, "Fork": testFork, "Descriptors": testDescriptors, "Spawning": testSpawning,
		"GRPC": testGRPC, "SecondAgent": testSecondAgent, "CloseLetsGo": testCloseLetsGo,
		"Credentials": testCredentials, "Tightened": testTightened, "Cgroup": testCgroup,
		"Inherited": testSpeaks("inherit"), "Passed": testSpeaks("pass"),
		"UserAtConnect": testUserAtConnect, "Facts": testPeerFacts, "ExecBeforeAccept": testExecBeforeAccept,
	} {
		t.Run(name, func(t *testing.T) { test(t, a) })
	}
}

// testSpeaks: another process that holds the socket is found out when it speaks, not before.
func testSpeaks(how string) func(*testing.T, *agent) {
	return func(t *testing.T, a *agent) {
		p, conn, c := a.client(t)
		stolenBy(t, a, conn, c, p.say(how))
	}
}

// testUserAtConnect: the user is the one that connected, though /proc has another one now.
func testUserAtConnect(t *testing.T, a *agent) {
	p := start(t, "client", a.path)
	p.word()
	p.say("become somebody")
	c, err := a.accept(t).Caller()
	if err != nil {
		t.Fatal(err)
	}
	if c.Credentials().UID != 0 {
		t.Errorf("user %d", c.Credentials().UID)
	}
	wantRefusal(t, "a caller that had another user before it was accepted", c.Check(), CredentialsChanged)
}

// testExecBeforeAccept states the limit: who executes another program before the agent accepts is
// taken for that.
func testExecBeforeAccept(t *testing.T, a *agent) {
	p := start(t, "client", a.path)
	p.word()
	pidfd := must(unix.PidfdOpen(p.Process.Pid, 0))
	defer unix.Close(pidfd)
	before, err := a.binder.Key(pidfd)
	check(err)
	if w := p.say("exec"); w != "executed" {
		t.Fatal(w)
	}
	c, err := a.accept(t).Caller()
	if err != nil || c.Check() != nil || c.Key() == before {
		t.Errorf("seen after all: %+v, %v; docs/evidence.md says that it goes unseen", c, err)
	}
}

func testPeerFacts(t *testing.T, a *agent) {
	_, _, c := a.client(t)
	p := a.binder.(*Peers)
	if c.Tier() != selectors.TierT3 || len(c.Task().Ancestors) != 0 || c.Task().Integrity != (record.Integrity{}) || c.Task().Flags != 0 {
		t.Errorf("tier %v, %+v", c.Tier(), c.Task())
	}
	if path, err := p.CgroupPath(c.CgroupID()); err != nil || path == "" {
		t.Errorf("cgroup %d is %q, %v", c.CgroupID(), path, err)
	}
	if now, err := p.Now(c.Key()); err != nil || !now.Known || now.Credentials != c.Credentials() || now.CgroupID != c.CgroupID() {
		t.Errorf("%+v, %v", now, err)
	}
	if _, err := p.Exec(-1, c.Key().ExecID); !errors.Is(err, record.ErrNoRecord) {
		t.Error(err)
	}
}

// TestPeersOfTheDead: a socket whose client is gone names nobody.
func TestPeersOfTheDead(t *testing.T) { withPeers(t, testPeersOfTheDead) }

func testPeersOfTheDead(t *testing.T, a *agent) {
	p := start(t, "client", a.path)
	p.word()
	p.stop()
	_, err := a.accept(t).Caller()
	wantRefusal(t, "a dead client", err, Gone)

	fds := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fds[0])
	check(unix.Close(fds[1]))
	if b, err := a.binder.Binding(fds[0]); err != nil || b.Task.Process.TGID != uint32(os.Getpid()) {
		t.Errorf("a closed socket of ours: %+v, %v", b.Task, err)
	}
}

// TestPeersRacePIDReuse: an impostor by number is never named at T3, either.
func TestPeersRacePIDReuse(t *testing.T) {
	withPeers(t, func(t *testing.T, a *agent) { racePIDReuse(t, a) })
}

func BenchmarkPeersCheck(b *testing.B) { withPeers(b, benchmarkPeersCheck) }

func benchmarkPeersCheck(b *testing.B, a *agent) {
	_, _, c := a.client(b)
	for b.Loop() {
		if err := c.Check(); err != nil {
			b.Fatal(err)
		}
	}
}
