// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

const (
	trustDomain = "example.org"
	life        = 30 * time.Second // of all SVIDs: they are replaced at half of it
	patience    = 2 * time.Minute  // for what may be slow on a busy machine
)

func id(name string) string { return "spiffe://" + trustDomain + "/" + name }

// tokensOf is how gospiffe's server calls the JWT-SVIDs of somebody.
func tokensOf(name string) string { return "tokens of " + id(name) }

// house is an Assay, a folder that users of all kinds may enter, and the programs that run.
type house struct {
	*dev.Env
	dir string
	log *output
	bin string // folder of Assay's programs
}

func open(t *testing.T) *house {
	t.Helper()
	bin := os.Getenv("ASSAY_BIN")
	if bin == "" {
		var err error
		bin, err = filepath.Abs("../../bin")
		fatal(t, err)
	}
	dir, err := os.MkdirTemp("", "assay-clients-")
	fatal(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	fatal(t, os.Chmod(dir, 0o755))
	h := &house{dir: dir, log: &output{}, bin: bin}
	h.Env, err = dev.Start(t.Context(), dev.Options{Bin: bin, Log: h.log, TrustDomain: trustDomain})
	fatal(t, err)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("--- assay\n%s", h.log.last(200))
		}
	})
	return h
}

// register lets a program that a user runs be somebody.
func (h *house) register(t *testing.T, name, program string, uid uint32) {
	t.Helper()
	h.create(t, name, "--binary", program, "--selector", fmt.Sprintf("unix:uid:%d", uid))
}

// create makes an entry, and returns when the agent knows it.
func (h *house) create(t *testing.T, name string, selectors ...string) {
	t.Helper()
	before := h.revision(t)
	h.assay(t, append([]string{"entry", "create", "--spiffe-id", id(name), "--parent", h.NodeID, "--x509-ttl", life.String(), "--jwt-ttl", life.String()}, selectors...)...)
	eventually(t, "the agent to know "+name, func() bool { return h.revision(t) > before })
}

func (h *house) assay(t *testing.T, args ...string) {
	t.Helper()
	tool(t, exec.Command(filepath.Join(h.bin, "assay"), append([]string{"--server-socket", h.ServerSocket}, args...)...))
}

func (h *house) revision(t *testing.T) int64 {
	t.Helper()
	s, err := h.AgentStatus(t.Context())
	fatal(t, err)
	return s.Revision
}

// folder makes one that belongs to a user.
func (h *house) folder(t *testing.T, name string, uid uint32) string {
	t.Helper()
	dir := filepath.Join(h.dir, name)
	fatal(t, os.Mkdir(dir, 0o755))
	fatal(t, os.Chown(dir, int(uid), int(uid)))
	return dir
}

// build makes a program out of the clients' own module, with the versions of a go.mod.
func (h *house) build(t *testing.T, name, mod, pkg string) string {
	t.Helper()
	path := filepath.Join(h.dir, name)
	cmd := exec.Command("go", "build", "-mod=readonly", "-modfile="+mod, "-o", path, pkg)
	cmd.Dir = "gospiffe"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	tool(t, cmd)
	return path
}

// tool runs a command that must succeed, and returns what it printed.
func tool(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// installed returns the path of a program of Debian's.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		t.Fatalf("%s is missing: make setup-tests installs it", name)
	}
	path, err = filepath.EvalSymlinks(path)
	fatal(t, err)
	return path
}

// program is one that runs beside the test.
type program struct {
	name     string
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	out, log *output
	done     chan struct{}
}

// start runs a program as a user until the test ends.
func (h *house) start(t *testing.T, name string, uid uint32, path string, args ...string) *program {
	t.Helper()
	p := &program{name: name, cmd: exec.Command(path, args...), out: &output{}, log: &output{}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+h.WorkloadSocket, "HOME="+h.dir)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	fatal(t, err)
	fatal(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the test says when it should end
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // and its children
		<-p.done
		if t.Failed() {
			t.Logf("--- %s\n%s", name, p.log.last(20))
		}
	})
	return p
}

// alive fails the test if the program has ended by itself.
func (p *program) alive(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
		t.Errorf("%s ended: %v", p.name, p.cmd.ProcessState)
	default:
	}
}

// flow is what a program of ours counted with one other.
type flow struct {
	Requests, Retries, Identities int
	Failures                      []string
	Serials                       map[string]bool
}

// report ends a program of ours, and returns what it counted.
func (p *program) report(t *testing.T) map[string]flow {
	t.Helper()
	fatal(t, p.stdin.Close())
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s does not end", p.name)
	}
	var flows map[string]flow
	if err := json.Unmarshal([]byte(p.out.String()), &flows); err != nil {
		t.Fatalf("%s printed no report: %v\n%s", p.name, err, p.log.last(40))
	}
	return flows
}

// listening waits until somebody listens at an address.
func listening(t *testing.T, address string, by *program) {
	t.Helper()
	eventually(t, by.name+" to listen", func() bool {
		select {
		case <-by.done:
			t.Fatalf("%s ended: %s", by.name, by.log.last(40))
		default:
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// addresses returns n of them where nobody listens.
func addresses(t *testing.T, n int) []string {
	t.Helper()
	var all []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		fatal(t, err)
		defer l.Close()
		all = append(all, l.Addr().String())
	}
	return all
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	fatal(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// output is what a program prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// last is its last lines.
func (o *output) last(n int) string {
	lines := slices.Collect(strings.Lines(o.String()))
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
