// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/cmd/dev"
)

// arena is a machine with the victims registered, and both attestors.
type arena struct {
	*dev.Env
	logs   *logBuffer
	bin    string
	dir    string
	kernel string
	tier   string
	// self is the attackers' program: this binary. The others are copies of it with another digest.
	self, victim, rootOnly, inCgroup, named, guarded, dynamic string
	cgroups                                                   string // where cgroup v2 is mounted
	cgroup                                                    string // the victim's, below it
	old                                                       *peerCred
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) since(at int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf.Bytes()[at:])
}

func (l *logBuffer) len() int { return len(l.since(0)) }

const trustDomain = "spiffe://example.org"

func newArena(t *testing.T) *arena {
	a := &arena{logs: &logBuffer{}, bin: os.Getenv("ASSAY_BIN")}
	if a.bin == "" {
		a.bin = must(filepath.Abs("../../bin"))
	}
	a.dir = must(os.MkdirTemp("", "redteam-"))
	check(os.Chmod(a.dir, 0o755)) // for attackers of other users
	t.Cleanup(func() { check(os.RemoveAll(a.dir)) })
	a.programs(t)
	a.makeCgroup(t)
	var err error
	a.Env, err = dev.Start(t.Context(), dev.Options{Bin: a.bin, TPM: os.Getenv("ASSAY_TPM"), EKCA: os.Getenv("ASSAY_EK_CA"), Log: a.logs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if t.Failed() {
			t.Logf("--- logs\n%s", a.logs.since(0))
		}
	})
	var uts unix.Utsname
	check(unix.Uname(&uts))
	a.kernel = strings.Join(strings.SplitN(unix.ByteSliceToString(uts.Release[:]), ".", 3)[:2], ".")
	s := must(a.AgentStatus(t.Context()))
	a.tier = strings.TrimPrefix(s.Tier.String(), "TIER_")
	entries := []registration{
		{id: trustDomain + "/victim", digest: digestOf(a.victim), parent: digestOf(a.self)},
		{id: trustDomain + "/root-only", digest: digestOf(a.rootOnly), root: true, more: []string{"unix:uid:0", "exec:no-set-id"}},
		{id: trustDomain + "/in-cgroup", digest: digestOf(a.inCgroup), cgroup: a.cgroup},
		{id: trustDomain + "/by-path", path: a.named},
		{id: trustDomain + "/guarded", digest: digestOf(a.guarded), parent: digestOf(a.self), more: []string{"integrity:memory-unwritten", "exec:binary"}},
		{id: trustDomain + "/dynamic", digest: digestOf(a.dynamic), parent: digestOf(a.self), more: a.libraries(t)},
	}
	for _, e := range entries {
		a.register(t, e)
	}
	a.old = startPeerCred(t, a.dir, entries)
	return a
}

// libraries returns the selector of what the dynamic victim loads when nobody meddles, as an
// operator would learn it; none at a tier that does not see that.
func (a *arena) libraries(t *testing.T) []string {
	if a.tier != "T1" {
		return nil
	}
	clean := exec.Command(a.dynamic, "60")
	check(clean.Start())
	defer func() { _ = clean.Process.Kill(); _ = clean.Wait() }()
	for range 100 {
		out, err := exec.Command(filepath.Join(a.bin, "assay"), "--agent-socket", a.AgentSocket, "explain", "--pid", strconv.Itoa(clean.Process.Pid)).Output()
		if sum := regexp.MustCompile(`code:libraries:sha256:[0-9a-f]{64}`).FindString(string(out)); err == nil && strings.Contains(string(out), "code:libraries:count:2") {
			return []string{sum} // the C library and the dynamic linker
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the agent does not tell which libraries a program loads")
	return nil
}

// programs makes the copies. Bytes after an ELF image change its digest and nothing else.
func (a *arena) programs(t *testing.T) {
	a.self = filepath.Join(a.dir, "attacker")
	code := must(os.ReadFile(must(os.Executable())))
	check(os.WriteFile(a.self, code, 0o755)) // the very bytes of this program
	copyAs := func(name string, tail ...byte) string {
		path := filepath.Join(a.dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, append(slices.Clip(code), tail...), 0o755))
		return path
	}
	a.victim, a.rootOnly, a.inCgroup, a.named = copyAs("victim", 'v'), copyAs("root-only", 'r'), copyAs("in-cgroup", 'c'), copyAs("named/victim", 'n')
	a.guarded = copyAs("guarded", 'g')
	a.dynamic = filepath.Join(a.dir, "dynamic")
	check(os.WriteFile(a.dynamic, must(os.ReadFile(Dynamic)), 0o755))
}

func (a *arena) makeCgroup(t *testing.T) {
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/mounts")))) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			a.cgroups = f[1]
		}
	}
	if a.cgroups == "" {
		t.Fatal("cgroup v2 is not mounted")
	}
	a.cgroup = fmt.Sprintf("/redteam-%d", os.Getpid())
	path := a.cgroups + a.cgroup
	check(os.Mkdir(path, 0o755))
	t.Cleanup(func() {
		err := os.Remove(path)
		for range 100 {
			if err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
			err = os.Remove(path)
		}
		t.Errorf("clean up: %v", err)
	})
}

func (a *arena) register(t *testing.T, e registration) {
	args := []string{"--server-socket", a.ServerSocket, "entry", "create", "--spiffe-id", e.id, "--parent", a.NodeID}
	for selector, value := range map[string]string{"unix:sha256:": e.digest, "parent:sha256:": e.parent, "unix:path:": e.path, "cgroup:path:": e.cgroup} {
		if value != "" {
			args = append(args, "--selector", selector+value)
		}
	}
	for _, selector := range e.more {
		args = append(args, "--selector", selector)
	}
	before := must(a.AgentStatus(t.Context())).Revision
	if out, err := exec.Command(filepath.Join(a.bin, "assay"), args...).CombinedOutput(); err != nil {
		t.Fatalf("entry create: %v: %s", err, out)
	}
	for deadline := time.Now().Add(time.Minute); must(a.AgentStatus(t.Context())).Revision == before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the agent does not get the entry")
		}
	}
}

// scene is one run of one attack against one attestor.
type scene struct {
	*arena
	t       *testing.T
	socket  string
	id      string
	dir     string // for this run's files
	hold    func()
	release func()
	actors  []*actor
	note    string // more evidence
}

func (a *arena) scene(t *testing.T, attack Attack, ours bool) *scene {
	wants := attack.Wants
	if wants == "" {
		wants = "/victim"
	}
	s := &scene{arena: a, t: t, id: trustDomain + wants, dir: must(os.MkdirTemp(a.dir, "scene-"))}
	check(os.Chmod(s.dir, 0o755))
	if ours {
		s.socket = strings.TrimPrefix(a.WorkloadSocket, "unix://")
		agent := a.agentPID()
		s.hold = func() { check(unix.Kill(agent, unix.SIGSTOP)) }
		s.release = func() { check(unix.Kill(agent, unix.SIGCONT)) }
	} else {
		// It knows no more at accept than later.
		s.socket, s.hold, s.release = a.old.socket, func() {}, func() {}
	}
	return s
}

// agentPID is who listens on the agent's admin socket.
func (a *arena) agentPID() int {
	fd := socket()
	defer unix.Close(fd)
	check(unix.Connect(fd, &unix.SockaddrUnix{Name: a.AgentSocket}))
	return int(must(unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)).Pid)
}

// actor is a process that plays a role, and its children.
type actor struct {
	s     *scene
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	ended bool
}

// prepare returns a command that plays a role.
func (s *scene) prepare(path, role string, env ...string) *exec.Cmd {
	c := exec.Command(path)
	c.Env = append(os.Environ(), "REDTEAM_ROLE="+role, "REDTEAM_SOCKET="+s.socket, "REDTEAM_ID="+s.id, "REDTEAM_ATTACKER="+s.self, "REDTEAM_VICTIM="+s.victim)
	c.Env = append(c.Env, env...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

func (s *scene) start(path, role string, env ...string) *actor {
	return s.run(s.prepare(path, role, env...))
}

func (s *scene) run(c *exec.Cmd) *actor {
	s.t.Helper()
	a := &actor{s: s, cmd: c, lines: make(chan string, 100)}
	c.Stderr = os.Stderr
	r, w, err := os.Pipe()
	check(err)
	c.Stdout = w
	a.in = must(c.StdinPipe())
	err = c.Start()
	w.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	s.actors = append(s.actors, a)
	go func() {
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			a.lines <- lines.Text()
		}
		close(a.lines)
	}()
	return a
}

func (a *actor) pid() int { return a.cmd.Process.Pid }

// word returns the next line that begins with the prefix, without it.
func (a *actor) word(prefix string) string {
	a.s.t.Helper()
	for timeout := time.After(2 * patience()); ; {
		select {
		case line, ok := <-a.lines:
			if !ok {
				a.s.t.Fatalf("an actor ended without saying %q", prefix)
			}
			if rest, found := strings.CutPrefix(line, prefix); found {
				return strings.TrimSpace(rest)
			}
		case <-timeout:
			a.s.t.Fatalf("an actor did not say %q", prefix)
		}
	}
}

func (a *actor) verdict() verdict {
	a.s.t.Helper()
	v, _ := parseVerdict("VERDICT " + a.word("VERDICT "))
	return v
}

func (a *actor) say(line string) { must(io.WriteString(a.in, line+"\n")) }

// exited waits for the process alone, its children may go on.
func (a *actor) exited() {
	must(a.cmd.Process.Wait())
	a.ended = true
}

func (a *actor) stop() {
	a.in.Close() // those who outlive their parent end with it
	if !a.ended {
		_ = syscall.Kill(-a.pid(), syscall.SIGKILL)
		_ = a.cmd.Wait()
	}
	for range a.lines { // until all of its children are gone
	}
}

func (s *scene) end() {
	for _, a := range s.actors {
		a.stop()
	}
}

var numbers = regexp.MustCompile(`(process|exec|at|inode|pid=|exec_id=|number) ?[0-9]+`)

// reason is what the agent logged of a refusal since; it waits for it, because at T1 a foreign use is
// told when the connection closes.
func (a *arena) reason(since int) (Outcome, string) {
	for end := time.Now().Add(patience() / 2); ; time.Sleep(10 * time.Millisecond) {
		text := a.logs.since(since)
		for _, kind := range []struct {
			text    string
			outcome Outcome
		}{{"caller refused", Refused}, {"no identity issued", NoIdentity}} {
			for line := range strings.Lines(text) {
				if strings.Contains(line, kind.text) && strings.HasSuffix(line, "\n") {
					return kind.outcome, a.shorten(line)
				}
			}
		}
		if time.Now().After(end) {
			return "", ""
		}
	}
}

// shorten leaves out what differs from run to run.
func (a *arena) shorten(line string) string {
	_, line, _ = strings.Cut(line, "msg=")
	for _, p := range []struct{ from, to string }{{a.dir, ""}, {a.cgroup, "/redteam"}} {
		line = strings.ReplaceAll(line, p.from, p.to)
	}
	line = regexp.MustCompile(`/scene-[0-9]+`).ReplaceAllString(line, "")
	line = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(line, "…")
	return strings.TrimSpace(numbers.ReplaceAllString(line, "$1 N"))
}
