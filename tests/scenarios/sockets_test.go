// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/cmd/dev"
)

// clientAt speaks the Workload API at a path.
func clientAt(t *testing.T, path string) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// paths of the SPIFFE IDs that the test gets at a socket.
func pathsAt(t *testing.T, socket string) (paths []string, err error) {
	t.Helper()
	list, err := clientAt(t, socket).FetchX509SVIDs(t.Context())
	for _, v := range list {
		paths = append(paths, v.ID.Path())
	}
	slices.Sort(paths)
	return paths, err
}

// Each socket has its own permissions, its own view of the entries, and its own services; limits count over all of them.
func TestSockets(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name+".sock") }
	m := start(t, dev.Options{Agent: fmt.Sprintf(`
socket "ci" {
  path  = %q
  mode  = "0640"
  user  = "1"
  group = "12345"
  only {
    spiffe_id_prefixes = ["spiffe://example.org/ci"]
  }
}
socket "inside" {
  path = %q
  only {
    hints = ["inside"]
  }
}
socket "envoy" {
  path                 = %q
  disable_workload_api = true
}
limits {
  connections_per_caller = 12
  fetch_jwt_svid         = 3
}`, at("ci"), at("inside"), at("envoy"))})
	m.create(t, "/ci/build", "--selector", me(t))
	m.create(t, "/cicada", "--selector", me(t))
	main := strings.TrimPrefix(m.WorkloadSocket, "unix://")
	for socket, want := range map[string][]string{main: {"/ci/build", "/cicada"}, at("ci"): {"/ci/build"}} {
		if got, err := pathsAt(t, socket); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", socket, got, err, want)
		}
	}
	if _, err := pathsAt(t, at("inside")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a socket with nothing for the caller: %v", err)
	}
	if _, err := pathsAt(t, at("envoy")); status.Code(err) != codes.Unimplemented {
		t.Errorf("a socket without the Workload API: %v", err)
	}
	info, err := os.Stat(at("ci"))
	if err != nil || info.Mode().Perm() != 0o640 || owner(info) != "1:12345" {
		t.Errorf("the file of a socket: %v, %s, %v", info.Mode(), owner(info), err)
	}
	m.testLimits(t, main, at("ci"))
}

func (m *machine) testLimits(t *testing.T, one, other string) {
	c := clientAt(t, one)
	answers := map[codes.Code]int{}
	for range 20 {
		_, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"})
		answers[status.Code(err)]++
	}
	if answers[codes.OK] < 3 || answers[codes.Unavailable] < 5 || answers[codes.OK]+answers[codes.Unavailable] != 20 {
		t.Errorf("20 calls of a method with 3 a second: %v", answers)
	}
	if _, err := c.FetchX509SVID(t.Context()); err != nil {
		t.Errorf("another method: %v", err)
	}
	var open []net.Conn
	closed := 0
	for i := range 30 {
		conn, err := net.Dial("unix", []string{one, other}[i%2])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if ends(t, conn) {
			closed++
		} else {
			open = append(open, conn)
		}
	}
	if len(open) > 12 || len(open) < 6 {
		t.Errorf("%d of 30 connections stay open, with 12 at most", len(open))
	}
	for _, conn := range open {
		conn.Close()
	}
	eventually(t, "room for others", func() bool {
		_, err := clientAt(t, one).FetchX509SVID(t.Context())
		return err == nil
	})
}

func owner(info os.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// ends reports whether the agent closes the connection, which it does at once or not within this test.
func ends(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadAll(conn) // a server's first words are its settings
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestSocketActivation: systemd's socket is there before the agent and stays after it; who connects while no agent runs is served
// by the next.
func TestSocketActivation(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t))
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(m.WorkloadSocket, "unix://")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	conf := filepath.Join(t.TempDir(), "agent.hcl")
	if err := os.WriteFile(conf, []byte(m.AgentConfig()), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(file *os.File) *program {
		p := &program{done: make(chan struct{}), cmd: exec.Command("/bin/sh", "-c", "LISTEN_PID=$$ exec "+bin("assay-agent")+" run --config "+conf)}
		p.cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=api")
		p.cmd.ExtraFiles = []*os.File{file}
		return launched(t, p)
	}
	fetched := func(mayMiss bool) (p *program) {
		waits := make(chan error, 1)
		go func() {
			_, err := clientAt(t, path).FetchX509SVID(t.Context())
			waits <- err
		}()
		time.Sleep(200 * time.Millisecond) // it has connected
		p = run(file)
		select {
		case err := <-waits:
			if err != nil && !mayMiss {
				t.Errorf("who connected while no agent ran: %v\n%s", err, &p.out)
			}
		case <-time.After(patience):
			t.Errorf("no answer\n%s", &p.out)
		}
		if _, err := clientAt(t, path).FetchX509SVID(t.Context()); err != nil {
			t.Errorf("who connected to the agent: %v\n%s", err, &p.out)
		}
		return p
	}
	fetched(isT1(t)).stop() // at T1 the sensor learns of a socket from the agent that takes it over
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the agent removed systemd's socket: %v", err)
	}
	fetched(false).stop()

	other, err := net.Listen("unix", filepath.Join(t.TempDir(), "other.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for want, l := range map[string]interface{ File() (*os.File, error) }{"write that path as socket_path": other.(*net.UnixListener), "network socket": tcp.(*net.TCPListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		refuses(t, run(f), want)
		f.Close()
	}
}
