// SPDX-License-Identifier: Apache-2.0

// Package faults breaks clusters of real assay-servers, each in a network namespace of its own,
// and checks that nothing that was acknowledged is lost and that the servers agree afterwards.
// It does the same to agents: their server lies or is slow, they are killed, thousands of streams come and go; no
// workload gets what is not its own, and nothing leaks.
// ASSAY_BIN is the folder of the programs. Two of the faults always run; ASSAY_FAULTS=all runs
// all of them.
package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// house is a cluster of servers with a switch between them.
type house struct {
	t       *testing.T
	dir     string
	servers []*server
}

// server is one of them; its name is also that of its network namespace's end of the cable.
type server struct {
	h                  *house
	n                  int
	name, dir, address string
	cmd                *exec.Cmd
	log                *os.File
	conn               *grpc.ClientConn
	entry              entryv1.EntryClient
}

// netns of this process's houses; one house exists at a time.
func netns(n int) string { return fmt.Sprintf("assay-faults-%d-%d", os.Getpid(), n) }

// build makes the network and a running cluster of count servers.
func build(t *testing.T, count int) *house {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "assay-faults-") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: dir}
	t.Cleanup(h.tearDown)
	run(t, "ip", "netns", "add", netns(0))
	run(t, "ip", "-n", netns(0), "link", "add", "switch", "type", "bridge")
	run(t, "ip", "-n", netns(0), "link", "set", "switch", "up")
	for n := 1; n <= count; n++ {
		h.add(n)
	}
	h.servers[0].store("init")
	for i, s := range h.servers {
		if i > 0 {
			s.enter("join")
		}
		s.start()
	}
	eventually(t, "all of them to vote", func() bool { return h.servers[0].voters() == count })
	return h
}

// add makes a namespace with a cable to the switch, and a server's files.
func (h *house) add(n int) *server {
	s := &server{h: h, n: n, name: fmt.Sprintf("s%d", n), address: fmt.Sprintf("10.77.0.%d", n)}
	s.dir = filepath.Join(h.dir, s.name)
	h.servers = append(h.servers, s)
	run(h.t, "ip", "netns", "add", netns(n))
	run(h.t, "ip", "-n", netns(0), "link", "add", s.name, "type", "veth", "peer", "name", "eth0", "netns", netns(n))
	run(h.t, "ip", "-n", netns(0), "link", "set", s.name, "master", "switch", "up")
	run(h.t, "ip", "-n", netns(n), "addr", "add", s.address+"/24", "dev", "eth0")
	for _, link := range []string{"eth0", "lo"} {
		run(h.t, "ip", "-n", netns(n), "link", "set", link, "up")
	}
	s.configure(fmt.Sprintf("cluster {\n  name    = %q\n  address = %q\n}", s.name, s.address+":8082"))
	return s
}

// configure writes the server's configuration; where says where its store is.
func (s *server) configure(where string) {
	s.h.t.Helper()
	conf := fmt.Sprintf(`
trust_domain = "example.org"
data_dir     = "%[1]s/data"
socket_path  = "%[1]s/admin.sock"
join_token {}
%[2]s
`, s.dir, where)
	if err := errors.Join(os.MkdirAll(s.dir, 0o700), os.WriteFile(s.config(), []byte(conf), 0o600)); err != nil {
		s.h.t.Fatal(err)
	}
}

func (h *house) tearDown() {
	for _, s := range h.servers {
		s.kill()
		if h.t.Failed() {
			log, _ := os.ReadFile(s.dir + "/log")
			h.t.Logf("log of %s, its end:\n%s", s.name, log[max(0, len(log)-4000):])
		}
	}
	for n := 0; n <= len(h.servers); n++ {
		if out, err := exec.Command("ip", "netns", "del", netns(n)).CombinedOutput(); err != nil {
			h.t.Errorf("remove %s: %v %s", netns(n), err, out)
		}
	}
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Error(err)
	}
}

func (s *server) config() string { return filepath.Join(s.dir, "server.hcl") }

// inside is a command in the server's namespace.
func (s *server) inside(args ...string) *exec.Cmd {
	bin := os.Getenv("ASSAY_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	all := append([]string{"netns", "exec", netns(s.n), filepath.Join(bin, "assay-server"), "--config", s.config()}, args...)
	cmd := exec.Command("ip", all...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// store runs a verb of `assay-server store`.
func (s *server) store(args ...string) string {
	s.h.t.Helper()
	out, err := s.inside(append([]string{"store"}, args...)...).CombinedOutput()
	if err != nil {
		s.h.t.Fatalf("%s: assay-server store %s: %v: %s", s.name, args, err, out)
	}
	return string(out)
}

// enter has the first other server that runs invite this one, and it joins or replaces.
func (s *server) enter(verb string, more ...string) {
	s.h.t.Helper()
	var host *server
	for _, other := range s.h.servers {
		if other.cmd != nil {
			host = other
			break
		}
	}
	invite := host.inside("store", "invite")
	out, err := invite.StdoutPipe()
	if err != nil {
		s.h.t.Fatal(err)
	}
	invite.Stderr = os.Stderr
	if err := invite.Start(); err != nil {
		s.h.t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, ticket, found := strings.Cut(lines.Text(), "store join "); found {
			s.store(append([]string{verb, ticket}, more...)...)
			break
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := invite.Wait(); err != nil {
		s.h.t.Fatalf("invite: %v", err)
	}
}

func (s *server) start() {
	s.h.t.Helper()
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.h.t.Fatal(err)
	}
	s.log = log
	s.cmd = s.inside("run")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.h.t.Fatal(err)
	}
	if s.conn, err = grpc.NewClient("unix://"+s.dir+"/admin.sock", grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		s.h.t.Fatal(err)
	}
	s.entry = entryv1.NewEntryClient(s.conn)
	eventually(s.h.t, s.name+" to serve", func() bool {
		_, err := s.entry.CountEntries(s.h.t.Context(), &entryv1.CountEntriesRequest{})
		return err == nil
	})
}

// kill ends the server and its member with SIGKILL.
func (s *server) kill() { s.end(syscall.SIGKILL) }

// stop ends them as an operator does.
func (s *server) stop() { s.end(syscall.SIGTERM) }

func (s *server) end(by syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(by)
	_ = s.cmd.Wait()
	_, _ = s.conn.Close(), s.log.Close()
	s.cmd = nil
}

// cable plugs the server in or out.
func (s *server) cable(to string) { run(s.h.t, "ip", "-n", netns(0), "link", "set", s.name, to) }

// roles counts the members in a role, as this server sees it.
func (s *server) roles(roles ...string) (n int, names []string) {
	out, err := s.inside("store", "members").Output()
	if err != nil {
		return 0, nil
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		for _, role := range roles {
			if len(fields) > 2 && fields[2] == role {
				n, names = n+1, append(names, fields[0])
			}
		}
	}
	return n, names
}

func (s *server) voters() int {
	n, _ := s.roles("leader", "voter")
	return n
}

// leader is who leads, as the living servers see it.
func (h *house) leader() *server {
	h.t.Helper()
	var leader *server
	eventually(h.t, "a leader", func() bool {
		for _, s := range h.servers {
			if s.cmd == nil {
				continue
			}
			_, names := s.roles("leader")
			for _, l := range h.servers {
				if len(names) == 1 && l.name == names[0] && l.cmd != nil {
					leader = l
					return true
				}
			}
		}
		return false
	})
	return leader
}

// memberPID is the server's child.
func (s *server) memberPID() int {
	s.h.t.Helper()
	pids, _ := os.ReadDir("/proc")
	for _, p := range pids {
		var pid int
		if _, err := fmt.Sscan(p.Name(), &pid); err != nil {
			continue
		}
		cmd, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if strings.Contains(string(cmd), "store-member\x00--dir\x00"+s.dir+"/") {
			return pid
		}
	}
	s.h.t.Fatalf("%s has no member", s.name)
	return 0
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, args, err, out)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 40 s for %s", what)
		}
	}
}

// all tells whether the slower faults run, too.
func all(t *testing.T) {
	t.Helper()
	if os.Getenv("ASSAY_FAULTS") != "all" {
		t.Skip("ASSAY_FAULTS=all runs this fault")
	}
}

func bounded(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
