// SPDX-License-Identifier: Apache-2.0

// Package scenarios runs the real programs together on one machine: natively, and as a static
// test binary inside a guest (tests/guest). ASSAY_BIN is the folder of the programs; in a
// guest ASSAY_TPM and ASSAY_EK_CA name its TPM.
package scenarios

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// env is the machine that most tests share. Those that break it start one of their own.
var env *dev.Env

var logs logBuffer

func TestMain(m *testing.M) {
	var err error
	env, err = dev.Start(context.Background(), options(&logs))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := env.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
		code = 1
	}
	os.Exit(code)
}

func options(log *logBuffer) dev.Options {
	return dev.Options{Bin: bin(""), TPM: os.Getenv("ASSAY_TPM"), EKCA: os.Getenv("ASSAY_EK_CA"), Log: log}
}

func bin(name string) string {
	dir := os.Getenv("ASSAY_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(dir, name)
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

// assay runs the CLI and returns what it printed on standard output.
func assay(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin("assay"), args...)
	cmd.Env = append(os.Environ(), "ASSAY_SERVER_SOCKET="+env.ServerSocket, "ASSAY_AGENT_SOCKET="+env.AgentSocket, "SPIFFE_ENDPOINT_SOCKET="+env.WorkloadSocket)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("assay %s: %s", strings.Join(args, " "), bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

// must is assay for calls that succeed; with into it decodes what -o json printed.
func must(t *testing.T, into any, args ...string) string {
	t.Helper()
	if into != nil {
		args = append(args, "-o", "json")
	}
	out, err := assay(t, args...)
	if err != nil {
		t.Fatalf("%v\n--- logs\n%s", err, logs.String())
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

// create registers an identity for this test and removes it at its end.
func create(t *testing.T, path string, more ...string) entry {
	t.Helper()
	var list []entry
	must(t, &list, append([]string{"entry", "create", "--spiffe-id", "spiffe://" + env.TrustDomain + path, "--parent", env.NodeID}, more...)...)
	t.Cleanup(func() {
		// The test may have deleted it.
		_ = exec.Command(bin("assay"), "--server-socket", env.ServerSocket, "entry", "delete", list[0].ID).Run()
	})
	return list[0]
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
