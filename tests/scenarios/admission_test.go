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
	contains(t, "node list", m.must(t, nil, "node", "list"), "banned since", "by operator ")
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

// A suspended node's agent says why it gets nothing, goes on asking, and after its readmission
// proves itself again in full, without anybody on the machine.
func TestSuspend(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t))
	w := m.startWorkload(t, self)
	w.next(t, m)
	serial := m.serial(t)
	m.must(t, nil, "node", "suspend", m.NodeID, "--reason", "a disk was replaced")
	shown := m.must(t, nil, "node", "show", m.NodeID)
	contains(t, "node show", shown, "suspended since", "by operator ", "a disk was replaced", "before", "admitted since", "assay node readmit "+m.NodeID)
	eventually(t, "the agent to be cut off", func() bool { return !m.connected(t) })
	eventually(t, "the agent's log to say why", func() bool { return strings.Contains(m.logs.String(), "a disk was replaced") })
	if e := w.next(t, m); e.Code == "" || e.Code == "OK" {
		t.Errorf("the stream of a suspended node's workload: %+v", e)
	}
	m.must(t, nil, "node", "readmit", m.NodeID)
	eventually(t, "the agent to be back", func() bool { return m.connected(t) })
	if m.serial(t) == serial {
		t.Error("the node did not attest again")
	}
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("after the readmission: %+v", e)
	}
}

// Inventories of the three forms go in, and come out as they can go in again.
func TestInventory(t *testing.T) {
	dir := t.TempDir()
	hash := func(c string) string { return strings.Repeat(c, 64) }
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "hashes"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("hashes/"+hash("3"), "")
	for _, form := range []string{write("a.csv", hash("1")+",rack 1,db\n"), write("b.json", `[{"ek_hash":"`+hash("2")+`","label":"rack, 2"}]`), filepath.Join(dir, "hashes")} {
		shared.must(t, nil, "tpm", "inventory", "import", form)
	}
	shared.must(t, nil, "tpm", "inventory", "add", hash("4"), "--label", "rack 4", "--note", "by hand")
	text := shared.must(t, nil, "tpm", "inventory", "export")
	if want := fmt.Sprintf("ek_hash,label,group,note\n%s,rack 1,db,\n%s,\"rack, 2\",,\n%s,,,\n%s,rack 4,,by hand\n", hash("1"), hash("2"), hash("3"), hash("4")); text != want {
		t.Errorf("exported\n%swant\n%s", text, want)
	}
	list := shared.must(t, nil, "tpm", "inventory", "list")
	contains(t, "list", list, hash("1")+"  label rack 1, group db, added ", "by operator ")
	shared.must(t, nil, "tpm", "inventory", "remove", hash("1"), hash("2"), hash("3"), hash("4"))
	if err := os.RemoveAll(filepath.Join(dir, "hashes")); err != nil {
		t.Fatal(err)
	}
	shared.must(t, nil, "tpm", "inventory", "import", write("c.csv", text))
	if again := shared.must(t, nil, "tpm", "inventory", "export"); again != text {
		t.Errorf("exported again\n%s", again)
	}
	shared.must(t, nil, "tpm", "inventory", "remove", hash("1"), hash("2"), hash("3"), hash("4"))
	if out, err := shared.assay(t, "tpm", "inventory", "remove", hash("1")); err == nil {
		t.Errorf("removed what is not there: %s", out)
	}
	contains(t, "roots", shared.must(t, nil, "tpm", "roots"), "root", "until", "sha256")
}
