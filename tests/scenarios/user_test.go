// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/cmd/dev"
	evidencepb "github.com/assay-id/assay/proto/evidence"
)

// TestAgentOfAUser: root puts the sensor into the kernel, and the agent is another user's, with the three
// capabilities of deploy/systemd/assay-agent.service.
func TestAgentOfAUser(t *testing.T) {
	m := start(t, dev.Options{})
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	conf, t1 := m.AgentConfig(), isT1(t)
	if t1 {
		conf += "protect = true\n"
	}
	command := m.place(t).command(t, "assay-agent", conf)
	giveAway(t, m, conf, command[3])
	agent := []uintptr{unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_PTRACE, unix.CAP_CHECKPOINT_RESTORE}

	launchAs(t, m, command, agent)
	m.create(t, "/user", "--selector", me(t), "--selector", "unix:uid:0", "--selector", "evidence:tier:t2", "--selector", "evidence:digest:hashed")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	svids, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil || len(svids) != 1 || svids[0].ID.Path() != "/user" {
		t.Errorf("go-spiffe fetched %v, %v", svids, err)
	}
	if knows := m.knowsCode(t); knows != t1 {
		t.Errorf("mapped code is known: %t, at tier T1: %t", knows, t1)
	}
}

func isT1(t *testing.T) bool {
	t.Helper()
	s, err := shared.AgentStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Tier == evidencepb.Tier_TIER_T1
}

// knowsCode reports whether the agent tells which libraries a process maps that was started under its sensor.
func (m *machine) knowsCode(t *testing.T) bool {
	t.Helper()
	w := m.startWorkload(t, self)
	var explained struct{ Selectors []string }
	m.must(t, &explained, "explain", "--pid", fmt.Sprint(w.cmd.Process.Pid))
	if !slices.Contains(explained.Selectors, me(t)) {
		t.Errorf("the program's digest is unknown: %v", explained.Selectors)
	}
	return slices.ContainsFunc(explained.Selectors, func(s string) bool { return strings.HasPrefix(s, "code:libraries:") })
}

const nobody = 65534

// giveAway makes nobody the owner of the agent's things, the TPM and the sensor.
func giveAway(t *testing.T, m *machine, conf, file string) {
	t.Helper()
	tpm := strings.TrimPrefix(regexp.MustCompile(`device = "(.*)"`).FindStringSubmatch(conf)[1], "unix:")
	st, err := os.Stat(tpm)
	if err != nil {
		t.Fatal(err)
	}
	was := st.Sys().(*syscall.Stat_t)
	t.Cleanup(func() { _ = os.Chown(tpm, int(was.Uid), int(was.Gid)) }) // a software TPM's is gone
	for _, top := range []string{tpm, file, filepath.Join(m.Dir, "data/agent"), filepath.Dir(m.AgentSocket)} {
		if err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, nobody, nobody)
		}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(bin("assay-agent"), "load", "--owner", "nobody", "--config", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "kernel sensor taken over from its pins") {
		t.Fatalf("assay-agent load: %v\n%s", err, out)
	}
}

// launchAs runs the agent as nobody until the test ends.
func launchAs(t *testing.T, m *machine, command []string, capabilities []uintptr) {
	t.Helper()
	p := &program{cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: capabilities}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the state says how
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("--- the agent\n%s", &p.out)
		}
	})
	p.says(t, "kernel sensor taken over from its pins")
	eventually(t, "the agent to be connected", func() bool { return m.connected(t) })
}
