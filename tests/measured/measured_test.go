// SPDX-License-Identifier: Apache-2.0

package measured

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tests/guest"
	"github.com/assay-id/assay/tpm/swtpm"
)

// initScript starts the agent and then obeys the serial line. It is the same for every boot, as
// it is measured. What changes lies on tmpfs, which IMA leaves out.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/assay HOME=/tmp
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mount -t securityfs sec /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cg /sys/fs/cgroup
ifconfig lo 127.0.0.1 up
for m in /lib/modules/*.ko; do insmod $m; done
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up; route add default gw 10.0.2.2
mkdir -p /run/assay /tmp/data
stty raw -echo </dev/ttyS1
exec 3<>/dev/ttyS1
` + startAgent + `
echo "SHELL ready" >&3
while read -r command <&3; do eval "$command" >&3 2>&1; echo "SHELL done" >&3; done
`

const commandLine = "console=ttyS0 panic=-1 quiet rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// lab is a server here, and the one machine that boots again and again.
type lab struct {
	server    *dev.Env
	dir, tpm  string
	downloads Downloads
	software  Software
	console   *os.File
}

// newLab builds what the machine boots, and starts the server.
func newLab(t *testing.T) *lab {
	t.Helper()
	root, err := filepath.Abs("../..")
	fatal(t, err)
	l := &lab{dir: t.TempDir()}
	l.tpm = filepath.Join(l.dir, "tpm")
	ekCA, err := swtpm.Manufacture(t.Context(), filepath.Join(l.dir, "ca"), l.tpm)
	fatal(t, err)
	ca := filepath.Join(l.dir, "ek-ca.pem")
	fatal(t, os.WriteFile(ca, ekCA, 0o644))
	l.console, err = os.Create(filepath.Join(l.dir, "console.log"))
	fatal(t, err)
	t.Cleanup(func() { l.console.Close() })

	l.server, err = dev.Start(t.Context(), dev.Options{Bin: filepath.Join(root, "bin"), ServerOnly: true, EKCA: ca, ServerTPM: "requote_interval = \"" + interval.String() + "\"", Log: l.console})
	fatal(t, err)
	t.Cleanup(func() { fatal(t, l.server.Close()) })

	cache := filepath.Join(root, ".cache")
	fatal(t, os.MkdirAll(cache, 0o755))
	l.downloads, err = Download(t.Context(), cache)
	fatal(t, err)
	var kernel guest.Kernel
	for _, k := range guest.Kernels {
		if k.Name == "6.12" {
			kernel = k
		}
	}
	l.software.Kernel, err = kernel.Fetch(t.Context(), cache)
	fatal(t, err)
	files := map[string]string{
		"bin/busybox": "/bin/busybox", "assay/assay": filepath.Join(root, "bin/assay"), "assay/assay-agent": filepath.Join(root, "bin/assay-agent"),
		"assay/agent.hcl": l.agentConfig(t), "assay/bundle.pem": filepath.Join(l.server.Dir, "bundle.pem"),
	}
	for _, m := range kernel.Modules {
		name := filepath.Base(m)
		files["lib/modules/"+name] = filepath.Join(l.software.Kernel, name)
	}
	l.software.Kernel = filepath.Join(l.software.Kernel, "vmlinuz")
	l.software.Initrd = filepath.Join(l.dir, "initrd.img")
	l.software.CommandLine = commandLine
	fatal(t, guest.Initramfs(t.Context(), l.software.Initrd, initScript, files))
	return l
}

func (l *lab) agentConfig(t *testing.T) string {
	t.Helper()
	_, port, _ := strings.Cut(l.server.ServerAddress, ":")
	path := filepath.Join(l.dir, "agent.hcl")
	fatal(t, os.WriteFile(path, []byte(fmt.Sprintf("trust_domain = %q\nserver_address = %q\ntrust_bundle_path = \"/assay/bundle.pem\"\ndata_dir = \"/tmp/data\"\ntpm {}\n",
		l.server.TrustDomain, Host+":"+port)), 0o644))
	return path
}

// boot starts the machine; it is switched off when the test ends, or by Kill.
func (l *lab) boot(t *testing.T, w Way, s Software) *Machine {
	t.Helper()
	dir := filepath.Join(l.dir, "machine")
	fatal(t, os.MkdirAll(dir, 0o755))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	m, err := Boot(ctx, w, s, l.downloads, dir, l.tpm, l.console)
	if err != nil {
		tail, _ := os.ReadFile(l.console.Name())
		t.Fatalf("%v\n%s", err, tail[max(0, len(tail)-4000):])
	}
	t.Cleanup(m.Kill)
	return m
}

// assay runs the operator's command line against the server.
func (l *lab) assay(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join("../../bin", "assay"), append(args, "--server-socket", l.server.ServerSocket)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("assay %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(bytes.TrimSpace(out))
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	// interval between quotes; the default is a minute.
	interval   = 5 * time.Second
	startAgent = "assay-agent run --config /assay/agent.hcl >/tmp/agent.log 2>&1 &"
	awaitAgent = "i=0; while [ $i -lt 120 ] && ! grep -q -e 'node has an identity' -e 'did not admit' /tmp/agent.log; do sleep 0.5; i=$((i+1)); done; cat /tmp/agent.log"
)

// TestBoots: for each way to boot, a machine is learnt as the golden one and admitted by that; the
// same machine with one byte of its command line or initial RAM disk changed is refused, and the
// event that shows it is named. A program that nobody listed suspends the node.
func TestBoots(t *testing.T) {
	l := newLab(t)
	for _, w := range Ways {
		t.Run(w.Name, func(t *testing.T) {
			l.rule(t, "")
			if id := l.node(t); strings.HasPrefix(id, "spiffe://") { // suspended by the rules before
				l.assay(t, "node", "evict", id)
			}
			began := time.Now()
			m := l.boot(t, w, l.software)
			t.Logf("genuine: a shell after %s", time.Since(began).Round(time.Second))
			l.learn(t, m, w)
			l.isAdmitted(t, m, w)
			if w.Name == "direct" {
				l.drifts(t, m)
			}
			m.Kill()
			changed := l.software
			changed.CommandLine = strings.Replace(commandLine, "quiet", "quieT", 1)
			l.isRefused(t, w, changed, "command_lines", "quieT", "event")
			// The stub of the kernel measures it, or that of the image.
			if event := map[string]string{"direct": "PCR 9 event", "uki": "PCR 11 event"}[w.Name]; event != "" {
				changed = l.software
				changed.Initrd = l.longer(t)
				l.isRefused(t, w, changed, "initrds", event)
			}
		})
	}
}

// learn makes the machine that runs the golden one of the server's default group.
func (l *lab) learn(t *testing.T, m *Machine, w Way) {
	t.Helper()
	out, err := m.Do(t.Context(), awaitAgent)
	fatal(t, err)
	if !strings.Contains(out, "node has an identity") {
		t.Fatalf("not admitted before there was a rule:\n%s", out)
	}
	said, err := m.Do(t.Context(), "assay tpm learn --golden /tmp/golden.json --ima /tmp/files.sha256; cat /proc/cmdline")
	fatal(t, err)
	golden, err := m.Do(t.Context(), "cat /tmp/golden.json")
	fatal(t, err)
	files, err := m.Do(t.Context(), "cat /tmp/files.sha256")
	fatal(t, err)
	path := filepath.Join(l.dir, w.Name)
	fatal(t, os.WriteFile(path+".json", []byte(golden), 0o644))
	fatal(t, os.WriteFile(path+".sha256", []byte(files), 0o644))
	initrd, err := os.ReadFile(l.software.Initrd)
	fatal(t, err)
	rules := fmt.Sprintf("node_group \"default\" {\n golden = %q\n command_lines = [%q]\n initrds = [\"%x\"]\n ima_allow = [%q]\n no_violations = true\n",
		path+".json", strings.TrimSpace(said), sha256.Sum256(initrd), path+".sha256")
	if w.Secure {
		rules += " secure_boot = true\n"
	}
	l.rule(t, rules+"}")
}

// rule starts the server anew with a node group.
func (l *lab) rule(t *testing.T, group string) {
	t.Helper()
	fatal(t, l.server.StopServer())
	l.server.SetServer(group)
	fatal(t, l.server.StartServer(t.Context()))
}

// isAdmitted has the machine attest anew under the rules.
func (l *lab) isAdmitted(t *testing.T, m *Machine, w Way) {
	t.Helper()
	out, err := m.Do(t.Context(), "killall assay-agent; sleep 1; : >/tmp/agent.log; "+startAgent+" "+awaitAgent)
	fatal(t, err)
	if !strings.Contains(out, "node has an identity") {
		t.Fatalf("not admitted under the rules learnt from itself:\n%s", out)
	}
	shown := l.assay(t, "node", "show", l.node(t))
	wants := []string{"admitted", "tpm:cmdline:has:ima_policy=tcb", "tpm:ima:boot-aggregate-ok", "tpm:ima:no-violations", "tpm:ima:allowlist:" + w.Name, "tpm:initrd:", "tpm:secureboot:disabled"}
	if w.Secure {
		wants[len(wants)-1] = "tpm:secureboot:enabled"
	}
	for _, want := range wants {
		if !strings.Contains(shown, want) {
			t.Errorf("the node has no %s:\n%s", want, shown)
		}
	}
}

// node is the SPIFFE ID of the only node.
func (l *lab) node(t *testing.T) string {
	t.Helper()
	id, _, _ := strings.Cut(l.assay(t, "node", "list"), "\n")
	return strings.TrimSpace(id)
}

// drifts runs a program that is in no list, and waits for what the server does about it.
func (l *lab) drifts(t *testing.T, m *Machine) {
	t.Helper()
	_, err := m.Do(t.Context(), "cp /bin/busybox /unlisted; echo >>/unlisted; /unlisted true")
	fatal(t, err)
	began := time.Now()
	var shown string
	for time.Since(began) < time.Minute {
		if shown = l.assay(t, "node", "show", l.node(t)); strings.Contains(shown, "suspended") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(began)
	if !strings.Contains(shown, "suspended") || !strings.Contains(shown, "/unlisted") {
		t.Fatalf("not suspended for a program that is in no list:\n%s", shown)
	}
	t.Logf("suspended %.1f s after an unlisted program was run (a quote every %s):\n%s", took.Seconds(), interval, shown)
	l.assay(t, "node", "readmit", l.node(t))
	out, err := m.Do(t.Context(), "killall assay-agent; sleep 1; : >/tmp/agent.log; "+startAgent+" "+awaitAgent)
	fatal(t, err)
	if strings.Contains(out, "node has an identity") {
		t.Errorf("admitted again though the program is still in its log:\n%s", out)
	}
}

// isRefused boots other software and wants the reason to name the rule and the event.
func (l *lab) isRefused(t *testing.T, w Way, s Software, words ...string) {
	t.Helper()
	m := l.boot(t, w, s)
	defer m.Kill()
	out, err := m.Do(t.Context(), awaitAgent)
	fatal(t, err)
	if strings.Contains(out, "node has an identity") {
		t.Fatalf("admitted:\n%s", out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			t.Errorf("the refusal does not say %q:\n%s", word, out)
		}
	}
	t.Logf("%s with a changed %s is refused:\n%s", w.Name, words[0], out)
}

// longer is the initial RAM disk with one more byte, which the kernel does not mind.
func (l *lab) longer(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(l.software.Initrd)
	fatal(t, err)
	path := filepath.Join(l.dir, "longer.img")
	fatal(t, os.WriteFile(path, append(data, 0), 0o644))
	return path
}
