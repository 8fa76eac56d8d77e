// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"

	"github.com/assay-id/assay/cmd/dev"
)

// What an agent can not work with ends it with one sentence that says what to do.
func TestAgentRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	quote := func(s string) string { return fmt.Sprintf("%q", s) }
	for _, c := range []struct {
		name   string
		change func(conf string, p place) string
		wants  []string
	}{
		{"wrong key", func(c string, _ place) string { return strings.Replace(c, "server_address", "sever_address", 1) },
			[]string{"assay-agent.hcl:2,1: unknown key \"sever_address\"; did you mean \"server_address\"?"}},
		{"syntax", func(c string, _ place) string { return c + "tpm {\n" }, []string{"assay-agent.hcl:"}},
		{"relative path", func(c string, _ place) string { return set(c, "data_dir", quote("agent")) }, []string{`data_dir "agent": write an absolute path`}},
		{"no bundle", func(c string, _ place) string { return set(c, "trust_bundle_path", quote("/nonexistent")) },
			[]string{"trust_bundle_path: open /nonexistent: no such file or directory; make the file with `assay bundle show`"}},
		{"garbage bundle", func(c string, _ place) string { return set(c, "trust_bundle_path", quote(empty)) },
			[]string{"holds no PEM certificates; make the file with `assay bundle show`"}},
		{"no trust", func(c string, _ place) string { return set(c, "trust_bundle_path", "") },
			[]string{"the server can not be authenticated: set trust_bundle_path"}},
		{"no attestation", func(c string, _ place) string { c, _, _ = strings.Cut(c, "tpm {"); return c }, []string{"name exactly one way of attestation"}},
		{"no TPM", func(c string, p place) string { return set(c, "device", quote("/dev/tpmrm77")) },
			[]string{"/dev/tpmrm77 does not exist: enable the TPM 2.0 in the firmware setup"}},
		{"unmanaged TPM", func(c string, p place) string { return set(c, "device", quote("/dev/tpm0")) },
			[]string{"/dev/tpm0 has no resource manager", "use /dev/tpmrm0"}},
		{"silent TPM", func(c string, p place) string { return set(c, "device", quote("unix:"+p.path("no.sock"))) },
			[]string{"no TPM answers on", "is swtpm running?"}},
		{"pins not on bpffs", func(c string, p place) string { return set(c, "pin_dir", quote(p.path("pins"))) },
			[]string{"is not on a BPF file system: run `mount -t bpf bpf ", "or set another pin directory"}},
		{"pins of another agent", func(c string, _ place) string {
			return set(c, "pin_dir", quote(filepath.Join(shared.Dir, "bpf/assay")))
		},
			[]string{"another agent uses the pin directory", "stop it first, or set another pin directory"}},
		{"socket of another agent", func(c string, _ place) string {
			return set(c, "socket_path", quote(strings.TrimPrefix(shared.WorkloadSocket, "unix://")))
		}, []string{"another process listens on", "stop it first, or set another socket path"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := shared.place(t)
			refuses(t, launch(t, p.command(t, "assay-agent", c.change(p.agent(shared), p))...), append(c.wants, "assay-agent: ")...)
			if strings.HasSuffix(c.name, "TPM") || strings.HasPrefix(c.name, "socket") {
				unload(t, p) // the sensor was on already and observes on
			}
		})
	}
	t.Run("missing file", func(t *testing.T) {
		for _, name := range []string{"assay-agent", "assay-server"} {
			refuses(t, launch(t, bin(name), "run", "--config", "/nonexistent.hcl"), name+": ", "open /nonexistent.hcl: no such file or directory; name a file with --config")
		}
	})
	t.Run("without capabilities", func(t *testing.T) {
		p := shared.place(t)
		refuses(t, launch(t, append([]string{self}, p.command(t, "assay-agent", p.agent(shared))...)...),
			"assay-agent: the sensor is not in the kernel, and to put it there needs CAP_BPF, CAP_PERFMON: run `assay-agent load", "or start the agent as root")
	})
	if s, err := shared.AgentStatus(t.Context()); err != nil || !s.Connected {
		t.Errorf("the first agent: %v, %v", s, err)
	}
}

func TestMinimumTier(t *testing.T) {
	nativeOnly(t, "a guest's kernel gives T1")
	p := shared.place(t)
	refuses(t, launch(t, p.command(t, "assay-agent", p.agent(shared)+"minimum_tier = \"t1\"\n")...),
		"this kernel gives evidence of tier t2 but the configuration demands t1", "boot a kernel that allows BPF LSM programs")
}

// A TPM whose maker the server does not know is refused, and admitted once it is in the inventory.
func TestUnknownTPM(t *testing.T) {
	p := shared.place(t)
	ca := p.path("other-ca.pem")
	if err := os.WriteFile(ca, []byte(shared.must(t, nil, "bundle", "show")), 0o600); err != nil { // a CA, of no TPM maker
		t.Fatal(err)
	}
	port := freePort(t)
	conf := set(p.server(shared, port), "ek_ca_path", fmt.Sprintf("%q", ca))
	server := launch(t, p.command(t, "assay-server", conf)...)
	server.says(t, "server is ready")
	bundle := p.bundle(t)

	a := shared.place(t)
	a.pins += "-agent"
	agentConf := set(a.agent(shared), "server_address", fmt.Sprintf("%q", "127.0.0.1:"+port))
	wrong := agentConf // it trusts the shared machine's server
	agentConf = set(agentConf, "trust_bundle_path", fmt.Sprintf("%q", bundle))
	ek := filepath.Base(shared.NodeID)
	refuses(t, launch(t, a.command(t, "assay-agent", agentConf)...),
		"the server did not admit this node: ", "is not under a configured root; add its CA to ek_ca_path or the EK hash "+ek+" to the inventory (assay tpm inventory add)")
	unload(t, a)

	server.stop()
	server = launch(t, p.command(t, "assay-server", strings.Replace(conf, fmt.Sprintf("ek_ca_path = %q", ca), fmt.Sprintf("ek_hashes = [%q]", ek), 1))...)
	server.says(t, "server is ready")
	agent := launch(t, a.command(t, "assay-agent", agentConf)...)
	agent.says(t, "node has an identity")
	agent.stop()

	if err := os.RemoveAll(a.path("agent")); err != nil { // its memory of the server
		t.Fatal(err)
	}
	agent = launch(t, a.command(t, "assay-agent", wrong)...)
	agent.says(t, "is not one that this agent's bundle vouches for: correct server_address, or set trust_bundle_path")
	agent.stop()
	unload(t, a)
}

func TestServerRefuses(t *testing.T) {
	_, port, err := net.SplitHostPort(shared.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(conf string, p place) string
		wants  []string
	}{
		{"wrong key", func(c string, _ place) string { return strings.Replace(c, "bind_port", "bind_prot", 1) },
			[]string{"assay-server.hcl:3,1: unknown key \"bind_prot\"; did you mean \"bind_port\"?"}},
		{"port in use", func(c string, _ place) string { return set(c, "bind_port", port) },
			[]string{"bind_address, bind_port: ", port, "address already in use", "stop the other program or set another bind_port"}},
		{"data_dir in use", func(c string, _ place) string {
			return set(c, "data_dir", fmt.Sprintf("%q", filepath.Join(shared.Dir, "data/server")))
		}, []string{"is in use by another assay-server: stop it or choose another data_dir"}},
		{"no CA", func(c string, _ place) string { return set(c, "ek_ca_path", `"/nonexistent"`) }, []string{"block tpm: ek_ca_path: ", "/nonexistent"}},
		{"times", func(c string, _ place) string { return c + "ca_ttl = \"1h\"\n" }, []string{"ca_ttl 1h0m0s is too short for SVIDs of 1h0m0s: write at least 6h"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := shared.place(t)
			refuses(t, launch(t, p.command(t, "assay-server", c.change(p.server(shared, freePort(t)), p))...), append(c.wants, "assay-server: ")...)
		})
	}
	contains(t, "the first server", shared.must(t, nil, "server", "status"), "SERVING")
}

// Without its server an agent that starts keeps trying, and says so to its workloads.
func TestServerUnreachable(t *testing.T) {
	p := shared.place(t)
	agent := launch(t, p.command(t, "assay-agent", set(p.agent(shared), "server_address", fmt.Sprintf("%q", "127.0.0.1:"+freePort(t))))...)
	agent.says(t, "no conversation with the server, trying again")
	env := *shared.Env
	env.WorkloadSocket, env.AgentSocket = "unix://"+p.path("api.sock"), p.path("admin.sock")
	alone := &machine{&env, &agent.out}
	if e := alone.startWorkload(t, self).next(t, alone); e.Code != "Unavailable" || !strings.Contains(e.Message, "the agent has no entries from the server yet, try again") {
		t.Errorf("got %+v", e)
	}
	contains(t, "agent status", alone.must(t, nil, "agent", "status"), "waiting since", "next try")
	agent.stop()
	unload(t, p)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// unload takes an agent's sensor out of the kernel, as an operator would.
func unload(t *testing.T, p place) {
	t.Helper()
	if out, err := exec.Command(bin("assay-agent"), "unload", "--config", p.path("assay-agent.hcl")).CombinedOutput(); err != nil {
		t.Errorf("unload: %v: %s", err, out)
	}
}

// bundle writes the bundle of the server in this place to a file.
func (p place) bundle(t *testing.T) string {
	t.Helper()
	conn, err := dev.Dial(p.path("admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.X509Authorities[0].Asn1})
	if err := os.WriteFile(p.path("bundle.pem"), out, 0o600); err != nil {
		t.Fatal(err)
	}
	return p.path("bundle.pem")
}
