// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tests/redteam"
	"github.com/assay-id/assay/tpm/swtpm"
)

// suites are the test binaries that run in a guest, in this order; the demo comes last. run names the tests
// of a suite that say something about the kernel's side or a real TPM; empty is all.
var suites = []struct{ name, pkg, run string }{
	{"bpf", "./bpf", ""},
	{"caller", "./agent/caller", ""},
	{"digest", "./agent/digest", ""},
	{"attest", "./agent/attest", ""},
	{"scenarios", "./tests/scenarios", strings.Join([]string{
		"TestNodeProvedItself", "TestInventory", "TestSuspend", "TestUnknownTPM", "TestAgentRefuses", "TestAgentKilled", "TestStatus", "TestExplain$",
		"TestManyAtOnce", "TestExecOnOpenStream", "TestCallerExits", "TestSlowReader", "TestByDigestAndParent", "TestOtherParentGetsNothing",
		"TestOpenStreamFollowsTheEntries", "TestTokensAreNotShared", "TestHistory", "TestClock",
	}, "|")},
	{"redteam", "./tests/redteam", ""},
	{"clock", "./tests/clock", ""},
}

const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mount -t securityfs sec /sys/kernel/security; mount -t tracefs tr /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cg /sys/fs/cgroup
ifconfig lo 127.0.0.1 up
for m in /lib/$(uname -r | cut -d. -f1,2)/*.ko; do insmod $m; done
printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >/etc/passwd; echo root:x:0: >/etc/group
echo "GUEST kernel $(uname -r) lsm $(cat /sys/kernel/security/lsm) tpm $(ls /dev/tpm* | tr '\n' ' ')"
export ASSAY_NO_SKIP=1 ASSAY_GUEST=1 ASSAY_BIN=/assay ASSAY_TPM=/dev/tpmrm0 ASSAY_EK_CA=/assay/ek-ca.pem ASSAY_ROUNDS=%s ASSAY_REDTEAM_LIBRARIES=/assay/redteam ASSAY_VERITY=/assay/verity.ext4
cd /tmp
for t in $(tr ' ' '\n' </proc/cmdline | sed -n 's/^assay.suites=//p' | tr , ' '); do
	echo "GUEST begin $t $(cut -d' ' -f1 /proc/uptime)"
	case $t in
	demo) /assay/demo ;;
	bench) /tests/bpf.test -test.run '^$' -test.bench Programs -test.benchtime 20x ;;
%s	*) /tests/$t.test -test.v -test.timeout 15m -test.run '%s' ;;
	esac
	echo "GUEST end $t $?"
done
poweroff -f
`

// TestGuests runs the suites of each kernel at tier T1 with a real /dev/tpmrm0. The suite "bench",
// what the kernel's programs cost there, runs only when it is asked for.
// ASSAY_KERNELS="6.1", ASSAY_SUITES="caller" and ASSAY_RUN="TestExec" (as go test's -run)
// narrow it; ASSAY_ROUNDS lengthens the races.
func TestGuests(t *testing.T) {
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	files := pack(t, root, dir)
	ekCA, err := swtpm.Manufacture(t.Context(), filepath.Join(dir, "ca"), filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	files["assay/ek-ca.pem"] = filepath.Join(dir, "ek-ca.pem")
	if err := os.WriteFile(files["assay/ek-ca.pem"], ekCA, 0o644); err != nil {
		t.Fatal(err)
	}
	kernels := map[string]string{}
	for _, k := range Kernels {
		if kernels[k.Name], err = k.Fetch(t.Context(), cache); err != nil {
			t.Fatal(err)
		}
		for _, m := range k.Modules {
			files[filepath.Join("lib", k.Name, filepath.Base(m))] = filepath.Join(kernels[k.Name], filepath.Base(m))
		}
	}
	initramfs := filepath.Join(dir, "initramfs.gz")
	if err := Initramfs(t.Context(), initramfs, fmt.Sprintf(initScript, rounds(), some(), os.Getenv("ASSAY_RUN")), files); err != nil {
		t.Fatal(err)
	}
	for _, k := range Kernels {
		if want := chosen("ASSAY_KERNELS", k.Name); !strings.Contains(strings.Join(want, " ")+" ", k.Name+" ") {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			m := Machine{Kernel: k, Vmlinuz: filepath.Join(kernels[k.Name], "vmlinuz"), Initramfs: initramfs, TPM: filepath.Join(dir, "tpm"), Timeout: 25 * time.Minute}
			names := chosen("ASSAY_SUITES", k.Suites...)
			m.Append = "assay.suites=" + strings.Join(names, ",")
			judge(t, m, names)
		})
	}
}

func chosen(variable string, fallback ...string) []string {
	if v := os.Getenv(variable); v != "" {
		return strings.Fields(v)
	}
	return fallback
}

func rounds() string { return strings.Join(chosen("ASSAY_ROUNDS", "50"), "") }

// some are the init script's cases of suites of which not all tests are run.
func some() string {
	var out strings.Builder
	for _, s := range suites {
		if s.run != "" && os.Getenv("ASSAY_RUN") == "" {
			fmt.Fprintf(&out, "\t%s) /tests/%s.test -test.v -test.timeout 15m -test.run '%s' ;;\n", s.name, s.name, s.run)
		}
	}
	return out.String()
}

// pack builds what goes into the guest.
func pack(t *testing.T, root, dir string) map[string]string {
	t.Helper()
	files := map[string]string{"bin/busybox": "/bin/busybox"}
	build := func(args ...string) {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	bin := filepath.Join(dir, "bin") + "/"
	build("build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./cmd/assay", "./cmd/assay-agent", "./cmd/assay-server", "./tests/demo", "./tests/demo/payments", "./tests/demo/ledger")
	for _, name := range []string{"assay", "assay-agent", "assay-server", "demo", "payments", "ledger"} {
		files["assay/"+name] = bin + name
	}
	// The red team's dynamic victim, what it is linked to, and the libraries of its attackers.
	for _, path := range []string{redteam.Dynamic, "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		files[path[1:]] = path
	}
	if err := redteam.BuildLibraries(t.Context(), filepath.Join(root, "tests/redteam/testdata/inject.c"), dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"preload.so", "audit.so"} {
		files["assay/redteam/"+name] = filepath.Join(dir, name)
	}
	files["assay/verity.ext4"] = filepath.Join(dir, "verity.ext4")
	mkfs := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-b", "4096", "-O", "verity,^has_journal", files["assay/verity.ext4"], "48M")
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	for _, s := range suites {
		out := filepath.Join(dir, s.name+".test")
		build("test", "-c", "-ldflags=-s -w", "-o", out, s.pkg)
		files["tests/"+s.name+".test"] = out
	}
	return files
}

// judge boots and reads the guest's verdicts: every suite must have begun and ended with 0.
func judge(t *testing.T, m Machine, names []string) {
	r, w := io.Pipe()
	booted := make(chan error, 1)
	go func() {
		err := m.Boot(context.WithoutCancel(t.Context()), w)
		w.Close()
		booted <- err
	}()
	passed := map[string]bool{}
	var attacks []redteam.Result
	previous := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		t.Log(line)
		var name string
		var code int
		if _, err := fmt.Sscanf(line, "GUEST end %s %d", &name, &code); err == nil {
			passed[name] = code == 0
		}
		if r, ok := redteam.ParseResult(line); ok {
			attacks = append(attacks, r)
		}
		// A test may say that it is only for the machine outside (scenarios.nativeOnly); its
		// words come before the verdict.
		if strings.Contains(line, "--- SKIP") && !strings.Contains(previous, "native only: ") {
			t.Errorf("skipped in the guest: %s", line)
		}
		previous = line
	}
	if err := <-booted; err != nil {
		t.Error(err)
	}
	for _, name := range names {
		if !passed[name] {
			t.Errorf("%s did not pass in the guest", name)
		}
	}
	if slices.Contains(names, "redteam") && os.Getenv("ASSAY_RUN") == "" {
		judgeAttacks(t, attacks)
	}
}

// judgeAttacks compares what the red team's document says of this kernel; with ASSAY_UPDATE=1 it
// writes that.
func judgeAttacks(t *testing.T, run []redteam.Result) {
	const root = "../.."
	if os.Getenv("ASSAY_UPDATE") == "1" && !t.Failed() {
		if err := redteam.Update(root, run); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := redteam.ReadResults(filepath.Join(root, redteam.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range redteam.Compare(committed, run) {
		t.Errorf("red team: %s; if that is right, run with ASSAY_UPDATE=1", d)
	}
}
