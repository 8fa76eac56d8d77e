// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// rounds is how often a race is run: ASSAY_ROUNDS, or 200.
func rounds(t *testing.T) int {
	text := os.Getenv("ASSAY_ROUNDS")
	if text == "" {
		return 200
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("ASSAY_ROUNDS=%q: want a number", text)
	}
	return n
}

// programCopy copies this binary, so that /proc/PID/exe tells its processes from others.
func programCopy(t *testing.T, name string) string {
	path := filepath.Join(t.TempDir(), name)
	from := must(os.Open("/proc/self/exe"))
	defer from.Close()
	to := must(os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755))
	must(io.Copy(to, from))
	check(to.Close())
	return path
}

// peerCredPath attests as is usual: the PID of the socket's peer, and that PID's executable.
func peerCredPath(c *Conn) (path string, pid int) {
	check(c.withFD(func(fd int) {
		cred := must(unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED))
		pid = int(cred.Pid)
	}))
	path, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return path, pid
}

// startAt starts a program with a given process number, if it can be had.
func startAt(t *testing.T, pid int, path string) *program {
	for range 10 {
		check(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
		p := startPath(t, path, "wait", "")
		if p.Process.Pid == pid {
			p.word()
			return p
		}
		p.stop()
	}
	return nil
}

// TestRacePIDReuse: an attacker connects, leaves the socket to a child and dies; its number
// goes to a legitimate program; then the agent accepts.
func TestRacePIDReuse(t *testing.T) { racePIDReuse(t, startAgent(t)) }

func racePIDReuse(t *testing.T, a *agent) {
	legit := programCopy(t, "legit")
	n := rounds(t)
	var reused, fooled int
	reasons := map[Reason]int{}
	for i := range n {
		attacker := startPath(t, "/proc/self/exe", "attacker", a.path)
		if w := attacker.word(); w != "ready" { // its child speaks, with the socket in hand
			t.Fatal(w)
		}
		check(attacker.Wait())
		victim := startAt(t, attacker.Process.Pid, legit)
		c, err := a.Accept()
		check(err)
		conn := c.(*Conn)
		if victim != nil {
			reused++
			if path, _ := peerCredPath(conn); path == legit {
				fooled++
			}
		}
		caller, err := conn.Caller()
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != Gone && r.Reason != Replaced {
			t.Fatalf("round %d: caller %+v, %v; want it gone or replaced", i, caller, err)
		}
		reasons[r.Reason]++
		conn.Close()
		if victim != nil {
			victim.stop()
		}
		attacker.stop()
	}
	t.Logf("tier %s: %d rounds, number reused %d, SO_PEERCRED named the legitimate program %d, Assay 0 (%v)", a.Tier(), n, reused, fooled, reasons)
	if reused < n/2 || fooled == 0 {
		t.Errorf("the race was hardly run: number reused %d, SO_PEERCRED fooled %d", reused, fooled)
	}
}

// TestRaceHandOver: an owner connects and another process uses the socket, by inheritance and
// by SCM_RIGHTS in turn, while the owner lives.
func TestRaceHandOver(t *testing.T) {
	a := startAgent(t)
	owner := programCopy(t, "owner")
	n := rounds(t)
	var fooled int
	for i := range n {
		p := startPath(t, owner, "client", a.path)
		p.word()
		c, err := a.Accept()
		check(err)
		conn := c.(*Conn)
		caller, err := conn.Caller()
		if err != nil {
			t.Fatalf("round %d: the owner itself: %v", i, err)
		}
		word := p.say([]string{"inherit", "pass"}[i%2])
		if path, pid := peerCredPath(conn); path == owner && pid == p.Process.Pid {
			fooled++
		}
		stolenBy(t, a, conn, caller, word)
		conn.Close()
		p.stop()
		if t.Failed() {
			t.Fatalf("round %d", i)
		}
	}
	t.Logf("tier %s: %d rounds, SO_PEERCRED named the owner %d, Assay 0", a.Tier(), n, fooled)
	if fooled != n {
		t.Errorf("SO_PEERCRED named the owner in %d of %d rounds", fooled, n)
	}
}
