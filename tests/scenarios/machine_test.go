// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
)

// machine is a server, a TPM and an agent, and what they log.
type machine struct {
	*dev.Env
	logs *logBuffer
}

func boot(ctx context.Context, o dev.Options) (*machine, error) {
	m := &machine{logs: &logBuffer{}}
	o.Bin, o.TPM, o.Log = bin(""), os.Getenv("ASSAY_TPM"), m.logs
	if o.EKCA == "" {
		o.EKCA = os.Getenv("ASSAY_EK_CA")
	}
	var err error
	m.Env, err = dev.Start(ctx, o)
	return m, err
}

// start boots a machine for one test.
func start(t *testing.T, o dev.Options) *machine {
	t.Helper()
	m, err := boot(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if t.Failed() {
			t.Logf("--- logs\n%s", m.logs)
		}
	})
	return m
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

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// count is how often the text was logged.
func (l *logBuffer) count(text string) int { return strings.Count(l.String(), text) }

func (m *machine) environ() []string {
	return append(os.Environ(), "ASSAY_SERVER_SOCKET="+m.ServerSocket, "ASSAY_AGENT_SOCKET="+m.AgentSocket, "SPIFFE_ENDPOINT_SOCKET="+m.WorkloadSocket)
}

// assay runs the CLI and returns what it printed on standard output.
func (m *machine) assay(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin("assay"), args...)
	cmd.Env = m.environ()
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("assay %s: %s", strings.Join(args, " "), bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

// must is assay for calls that succeed; with into it decodes what -o json printed.
func (m *machine) must(t *testing.T, into any, args ...string) string {
	t.Helper()
	if into != nil {
		args = append(args, "-o", "json")
	}
	out, err := m.assay(t, args...)
	if err != nil {
		t.Fatalf("%v\n--- logs\n%s", err, m.logs)
	}
	if into != nil {
		if err := json.Unmarshal(out, into); err != nil {
			t.Fatalf("assay %s printed %s: %v", strings.Join(args, " "), out, err)
		}
	}
	return string(out)
}

// entry is the part of an entry's JSON that tests look at.
type entry struct {
	ID             string `json:"id"`
	RevisionNumber string `json:"revision_number"`
	Selectors      []struct{ Type, Value string }
	DNSNames       []string `json:"dns_names"`
	Hint           string
}

// register makes an entry for this test and removes it at its end.
func (m *machine) register(t *testing.T, path string, more ...string) entry {
	t.Helper()
	return m.registerUnder(t, path, m.NodeID, more...)
}

// registerUnder is register for any parent.
func (m *machine) registerUnder(t *testing.T, path, parent string, more ...string) entry {
	t.Helper()
	var list []entry
	m.must(t, &list, append([]string{"entry", "create", "--spiffe-id", "spiffe://" + m.TrustDomain + path, "--parent", parent}, more...)...)
	t.Cleanup(func() {
		if t.Failed() && m == shared {
			t.Logf("--- logs\n%s", m.logs)
		}
		// The test may have deleted it, or stopped the server.
		_ = exec.Command(bin("assay"), "--server-socket", m.ServerSocket, "entry", "delete", list[0].ID).Run()
	})
	return list[0]
}

// create registers an entry and waits until the agent knows it.
func (m *machine) create(t *testing.T, path string, more ...string) entry {
	t.Helper()
	e := m.register(t, path, more...)
	eventually(t, "the agent to know entry "+path, func() bool { return m.knows(t, path, e.ID) })
	return e
}

// knows reports whether the agent has the entry.
func (m *machine) knows(t *testing.T, path, id string) bool {
	t.Helper()
	conn, err := dev.Dial(m.AgentSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	x, err := adminpb.NewAgentAdminClient(conn).ExplainIdentity(t.Context(), &adminpb.ExplainIdentityRequest{SpiffeId: "spiffe://" + m.TrustDomain + path})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(x.Entries, func(e *adminpb.Match) bool { return e.EntryId == id })
}

func (m *machine) connected(t *testing.T) bool {
	s, err := m.AgentStatus(t.Context())
	return err == nil && s.Connected
}

// patience is for an emulated guest; natively everything here takes less than a second or two.
const patience = time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// ended returns how the agent ended by itself.
func (m *machine) ended(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := m.Wait(ctx)
	if err == nil {
		t.Fatal("the agent did not end")
	}
	return err.Error()
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func contains(t *testing.T, what, got string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q is missing in:\n%s", what, want, got)
		}
	}
}
