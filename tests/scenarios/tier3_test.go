// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/assay-id/assay/cmd/dev"
)

// withoutSensor boots a machine whose agent may load no program and goes on at T3.
func withoutSensor(t *testing.T) (*machine, *program) {
	t.Helper()
	m := start(t, dev.Options{})
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	// Else it would take over what is pinned, which needs no right to load programs.
	if out, err := exec.Command(bin("assay-agent"), "unload", "--config", filepath.Join(m.Dir, "assay-agent.hcl")).CombinedOutput(); err != nil {
		t.Fatalf("unload: %v\n%s", err, out)
	}
	var token struct{ Value string }
	m.must(t, &token, "token", "create")
	m.SetAgent(fmt.Sprintf("minimum_tier = \"t3\"\njoin_token {\n  token = %q\n}\n", token.Value))
	m.NodeID = "spiffe://example.org/spire/agent/join_token/" + token.Value
	p := m.place(t)
	agent := launch(t, append([]string{self}, p.command(t, "assay-agent", m.AgentConfig())...)...)
	agent.says(t, "there is no kernel sensor; going on with what /proc tells, as minimum_tier allows")
	eventually(t, "the agent to be connected", func() bool { return m.connected(t) })
	return m, agent
}

// TestTier3 runs an agent without CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, and what it can vouch for.
func TestTier3(t *testing.T) {
	nativeOnly(t, "tier T3 is of this kernel and of a process without capabilities")
	m, agent := withoutSensor(t)
	st, err := m.AgentStatus(t.Context())
	if err != nil || st.Tier.String() != "TIER_T3" || len(st.Hooks) != 1 || !strings.Contains(st.Hooks[0].Detail, "CAP_BPF") {
		t.Errorf("status %v, %v", st, err)
	}
	m.create(t, "/strong", "--selector", me(t), "--selector", "evidence:tier:t2")
	m.create(t, "/t3", "--selector", me(t), "--selector", "evidence:tier:t3", "--selector", "unix:uid:0")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	svids, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil || len(svids) != 1 || svids[0].ID.Path() != "/t3" {
		t.Errorf("go-spiffe fetched %v, %v\n%s", svids, err, &agent.out)
	}
	if _, err := m.assay(t, "fetch", "x509"); err == nil {
		t.Error("another program has an identity")
	}
	var explained struct{ Selectors []string }
	m.must(t, &explained, "explain", "--pid", fmt.Sprint(agent.cmd.Process.Pid))
	for _, never := range []string{"parent:", "ancestor:", "exec:", "integrity:", "namespace:", "code:", "evidence:tier:t2", "evidence:observed", "evidence:seeded"} {
		if slices.ContainsFunc(explained.Selectors, func(s string) bool { return strings.HasPrefix(s, never) }) {
			t.Errorf("%s at T3: %v", never, explained.Selectors)
		}
	}
	for _, want := range []string{"evidence:tier:t3", "evidence:digest:hashed", "unix:uid:0", "cgroup:path:"} {
		if !slices.ContainsFunc(explained.Selectors, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("no %s at T3: %v", want, explained.Selectors)
		}
	}
	var nodes []struct {
		AgentVersion string `json:"agent_version"`
	}
	m.must(t, &nodes, "node", "list")
	said, err := exec.Command(bin("assay-agent"), "--version").Output()
	for _, n := range nodes {
		if n.AgentVersion == "" || !strings.HasSuffix(strings.TrimSpace(string(said)), n.AgentVersion) {
			t.Errorf("the server shows version %q of an agent that says %q, %v", n.AgentVersion, said, err)
		}
	}
}

// TestTier3ExecOnOpenStream: what was executed on an open connection gets nothing that is pushed after.
func TestTier3ExecOnOpenStream(t *testing.T) {
	nativeOnly(t, "tier T3 is of this kernel and of a process without capabilities")
	m, agent := withoutSensor(t)
	e := m.create(t, "/t3", "--selector", me(t))
	w := m.startWorkload(t, self)
	if got := w.next(t, m); len(got.IDs) != 1 {
		t.Fatalf("got %+v\n%s", got, &agent.out)
	}
	fmt.Fprintln(w.stdin, "exec")
	eventually(t, "the other program", func() bool { return strings.Contains(w.text(), "executed") })
	m.must(t, nil, "entry", "update", e.ID, "--dns", "after.example.org")
	eventually(t, "the end of the stream", func() bool { return strings.Contains(agent.out.String(), "has executed another program") })
	time.Sleep(100 * time.Millisecond) // anything pushed would be read by now
	if strings.Contains(w.text(), "after.example.org") {
		t.Error("the other program was given the SVID")
	}
}

// TestTier3Refuses: what only a sensor can do is not left undone.
func TestTier3Refuses(t *testing.T) {
	for _, line := range []string{"protect = true", "kernel_digests = true", "connect_from = [\"/system.slice\"]"} {
		p := shared.place(t)
		refuses(t, launch(t, p.command(t, "assay-agent", "minimum_tier = \"t3\"\n"+line+"\n"+p.agent(shared))...),
			"protect, kernel_digests and connect_from are done by the kernel sensor", "or set minimum_tier = \"t1\"")
	}
}
