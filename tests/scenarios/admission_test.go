// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// A banned node ends with its streams and stays out until an operator forgets it.
func TestBan(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t))
	w := m.startWorkload(t, self)
	w.next(t, m)
	m.must(t, nil, "node", "ban", m.NodeID)
	contains(t, "the agent's end", m.ended(t), "this node was banned by the server", "assay node evict")
	if e := w.next(t, m); e.Code == "" || e.Code == "OK" {
		t.Errorf("the stream of a banned node's workload: %+v", e)
	}
	contains(t, "node list", m.must(t, nil, "node", "list"), "banned by tpm")
	err := m.StartAgent(t.Context())
	if err == nil {
		t.Fatal("a banned node was admitted")
	}
	contains(t, "a banned node", err.Error(), "exit status 1", "assay-agent: this node was banned by the server", "assay node evict")

	id := m.NodeID
	m.must(t, nil, "node", "evict", id)
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.NodeID != id {
		t.Errorf("the node was %s, is %s", id, m.NodeID)
	}
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("after the ban: %+v", e)
	}
}

// An evicted node with a TPM proves itself again without anybody's help, and its workloads
// notice nothing.
func TestEvict(t *testing.T) {
	m := start(t, dev.Options{})
	e := m.create(t, "/w", "--selector", me(t))
	w := m.startWorkload(t, self)
	w.next(t, m)
	serial := m.serial(t)
	m.must(t, nil, "node", "evict", m.NodeID)
	eventually(t, "the node to prove itself again", func() bool {
		out, err := m.assay(t, "node", "show", m.NodeID)
		return err == nil && !strings.Contains(string(out), serial)
	})
	eventually(t, "the agent to be back", func() bool { return m.connected(t) })
	w.quiet(t)
	m.must(t, nil, "entry", "update", e.ID, "--dns", "after.example.org")
	if got := w.next(t, m); len(got.DNS) != 1 {
		t.Errorf("after the eviction: %+v", got)
	}
}

// A node without a TPM joins by a token once, keeps its identity over restarts, and its
// workloads get theirs on the kernel's evidence like any others.
func TestJoinToken(t *testing.T) {
	m := start(t, dev.Options{})
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	var token struct{ Value string }
	m.must(t, &token, "token", "create")
	m.SetAgent(fmt.Sprintf("join_token {\n  token = %q\n}", token.Value))
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://example.org/spire/agent/join_token/" + token.Value; m.NodeID != want {
		t.Errorf("the node is %s, want %s", m.NodeID, want)
	}
	state := filepath.Join(m.Dir, "data/agent/agent.json")
	if st, err := os.Stat(state); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the node's identity on disk: %v, %v", st, err)
	}
	m.create(t, "/w", "--selector", me(t))
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("a workload of a node that joined by token: %+v", e)
	}
	serial := m.serial(t)
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatalf("the second start: %v", err)
	}
	if got := m.serial(t); got != serial {
		t.Errorf("the node's SVID was serial %s, is %s", serial, got)
	}
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("a workload after the restart: %+v", e)
	}

	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(state); err != nil {
		t.Fatal(err)
	}
	err := m.StartAgent(t.Context())
	if err == nil {
		t.Fatal("the token worked twice")
	}
	contains(t, "a spent token", err.Error(), "the server did not admit this node", "join token does not exist or has already been used", "assay token create")
}
