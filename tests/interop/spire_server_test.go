// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"

	"github.com/assay-id/assay/cmd/dev"
)

// foreign is a server of SPIRE's that runs.
type foreign struct{ address, socket, bundle string }

// agentTTL of SPIRE's server, in seconds: short, so that a test sees an agent renew.
const agentTTL = 20

// spireServer starts SPIRE's server; more are the lines of one more plugin, if any.
func spireServer(t *testing.T, more string) foreign {
	t.Helper()
	return spireServerOf(t, trustDomain, "", more)
}

// spireServerOf starts SPIRE's server of a trust domain, with more lines in its block server and among its plugins.
func spireServerOf(t *testing.T, domain, settings, more string) foreign {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "spire-") // a socket's path is short
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	address := l.Addr().String()
	fatal(t, l.Close())
	_, port, err := net.SplitHostPort(address)
	fatal(t, err)
	f := foreign{address: address, socket: filepath.Join(dir, "api.sock")}
	conf := write(t, filepath.Join(dir, "server.conf"), fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = %s
  socket_path = %q
  trust_domain = %q
  data_dir = %q
  log_level = "DEBUG"
  agent_ttl = "%ds"
%s
}
plugins {
  DataStore "sql" { plugin_data {
    database_type = "sqlite3"
    connection_string = %q
  } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
%s
}
`, port, f.socket, domain, filepath.Join(dir, "data"), agentTTL, settings, filepath.Join(dir, "data.sqlite3"), more))
	run(t, program(t, "SPIRE_SERVER"), "run", "-config", conf)
	conn, err := dev.Dial(f.socket)
	fatal(t, err)
	defer conn.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		b, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
		if err == nil {
			var out bytes.Buffer
			for _, a := range b.X509Authorities {
				fatal(t, pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.Asn1}))
			}
			f.bundle = out.String()
			return f
		}
		if time.Now().After(deadline) {
			t.Fatalf("SPIRE's server does not answer: %v", err)
		}
	}
}

// ours starts our agent at SPIRE's server.
func ours(t *testing.T, f foreign, attestor string) *dev.Env {
	t.Helper()
	return server(t, dev.Options{ElsewhereAddress: f.address, ElsewhereBundle: f.bundle, Agent: attestor})
}

func TestOurAgentJoinToken(t *testing.T) {
	f := spireServer(t, "")
	token := joinToken(t, f.socket)
	works(t, f, ours(t, f, fmt.Sprintf("join_token {\n  token = %q\n}", token)), "/spire/agent/join_token/"+token)
}

func TestOurAgentX509POP(t *testing.T) {
	for name, rsaKey := range map[string]bool{"RSA": true, "ECDSA": false} {
		t.Run(name, func(t *testing.T) {
			node := pki(t, rsaKey)
			f := spireServer(t, fmt.Sprintf("  NodeAttestor \"x509pop\" { plugin_data {\n    ca_bundle_path = %q\n  } }", node.root))
			works(t, f, ours(t, f, fmt.Sprintf("x509pop {\n  private_key_path = %q\n  certificate_path = %q\n}", node.key, node.certificate)), node.id)
		})
	}
}

func TestOurAgentDevID(t *testing.T) {
	for name, ecc := range map[string]bool{"RSA": false, "ECC": true} {
		t.Run(name, func(t *testing.T) {
			node := devid(t, ecc)
			f := spireServer(t, fmt.Sprintf("  NodeAttestor \"tpm_devid\" { plugin_data {\n%s  } }", node.roots))
			works(t, f, ours(t, f, fmt.Sprintf("tpm_devid {\n  tpm_device_path = %q\n%s}", node.tpm, node.key)), node.id)
		})
	}
}

// works checks that our agent keeps an identity at SPIRE's server and gives its workloads theirs, by
// our selectors, until their entries go.
func works(t *testing.T, f foreign, env *dev.Env, agent string) {
	t.Helper()
	if want := "spiffe://" + trustDomain + agent; env.NodeID != want {
		t.Fatalf("the node is %s, want %s", env.NodeID, want)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	fatal(t, err)
	digest := fmt.Sprintf("unix:sha256:%x", sha256.Sum256(exe))
	register(t, f.socket, agent, "/another-program", "unix:sha256:"+fmt.Sprintf("%064x", 1))
	register(t, f.socket, agent, "/not-our-script", digest, fmt.Sprintf("exec:script:sha256:%064x", 1))
	id := register(t, f.socket, agent, "/by-our-agent", digest, "evidence:tier:t2", "exec:file:regular")

	if svid := fetch(t, env.WorkloadSocket); svid.ID.Path() != "/by-our-agent" {
		t.Errorf("SVID for %s", svid.ID)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	all, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(env.WorkloadSocket))
	fatal(t, err)
	if len(all) != 1 {
		t.Errorf("%d SVIDs, want one", len(all))
	}

	first, err := env.AgentStatus(t.Context())
	fatal(t, err)
	within(t, 2*agentTTL*time.Second, "the agent renews its SVID", func() bool {
		s, err := env.AgentStatus(t.Context())
		return err == nil && s.SvidExpiresAt > first.SvidExpiresAt && s.Connected
	})
	if svid := fetch(t, env.WorkloadSocket); svid.ID.Path() != "/by-our-agent" {
		t.Errorf("after the renewal: SVID for %s", svid.ID)
	}

	conn, err := dev.Dial(f.socket)
	fatal(t, err)
	defer conn.Close()
	_, err = entryv1.NewEntryClient(conn).BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	fatal(t, err)
	within(t, 20*time.Second, "the identity goes with its entry", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(env.WorkloadSocket))
		return err != nil && ctx.Err() == nil
	})
	t.Logf("our agent %s at SPIRE's server gave %s", env.NodeID, all[0].ID)
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within %s: %s", d, what)
		}
	}
}
