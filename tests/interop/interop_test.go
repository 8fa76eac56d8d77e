// SPDX-License-Identifier: Apache-2.0

// Package interop runs Assay beside the real programs of SPIRE, and pebble, which are built outside of
// this repository: `make interop SPIRE_AGENT=… SPIRE_SERVER=… PEBBLE=…`. Without them there is nothing
// to run, so `make test` leaves this package out.
package interop

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

const trustDomain = "example.org"

// program returns the path of one of these programs.
func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set: build that program elsewhere and name it", variable)
	}
	return path
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server starts our server with a machine around it.
func server(t *testing.T, o dev.Options) *dev.Env {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	fatal(t, err)
	log := &output{}
	o.Bin, o.Log, o.TrustDomain = bin, log, trustDomain
	env, err := dev.Start(t.Context(), o)
	fatal(t, err)
	t.Cleanup(func() {
		if err := env.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("--- assay\n%s", log)
		}
	})
	return env
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

// run starts a program for the time of a test.
func run(t *testing.T, path string, args ...string) {
	t.Helper()
	log := &output{}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	fatal(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("--- %s\n%s", filepath.Base(path), log)
		}
	})
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	fatal(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// spireAgent starts SPIRE's agent against our server, with one node attestor plugin, and
// returns its Workload API's address.
func spireAgent(t *testing.T, env *dev.Env, attestor string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	host, port, err := net.SplitHostPort(env.ServerAddress)
	fatal(t, err)
	socket := filepath.Join(dir, "api.sock")
	conf := write(t, filepath.Join(dir, "agent.conf"), fmt.Sprintf(`agent {
  data_dir = %q
  log_level = "DEBUG"
  server_address = %q
  server_port = %s
  socket_path = %q
  trust_bundle_path = %q
  trust_domain = %q
}
plugins {
%s
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, filepath.Join(dir, "data"), host, port, socket, filepath.Join(env.Dir, "bundle.pem"), trustDomain, attestor))
	run(t, program(t, "SPIRE_AGENT"), append([]string{"run", "-config", conf}, args...)...)
	return "unix://" + socket
}

// register makes an entry for an agent's workloads on the server behind a private socket, and
// returns its id.
func register(t *testing.T, socket, agent, path string, selectors ...string) string {
	t.Helper()
	conn, err := dev.Dial(socket)
	fatal(t, err)
	defer conn.Close()
	e := &types.Entry{
		ParentId: &types.SPIFFEID{TrustDomain: trustDomain, Path: strings.TrimPrefix(agent, "spiffe://"+trustDomain)},
		SpiffeId: &types.SPIFFEID{TrustDomain: trustDomain, Path: path},
	}
	for _, text := range selectors {
		kind, value, _ := strings.Cut(text, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: kind, Value: value})
	}
	r, err := entryv1.NewEntryClient(conn).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	fatal(t, err)
	if s := r.Results[0].Status; s.Code != 0 {
		t.Fatal(s.Message)
	}
	return r.Results[0].Entry.Id
}

// joinToken makes a token on the server behind a private socket.
func joinToken(t *testing.T, socket string) string {
	t.Helper()
	conn, err := dev.Dial(socket)
	fatal(t, err)
	defer conn.Close()
	token, err := agentv1.NewAgentClient(conn).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	fatal(t, err)
	return token.Value
}

// fetch waits until a Workload API gives an SVID, as clients do.
func fetch(t *testing.T, address string) *x509svid.SVID {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address))
	fatal(t, err)
	defer client.Close()
	for {
		svid, err := client.FetchX509SVID(ctx)
		if err == nil {
			return svid
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no SVID within a minute: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
