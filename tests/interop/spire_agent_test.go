// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"fmt"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// SPIRE's agents send no evidence, so the operator of our server must allow that by type.

func TestSPIREAgentJoinToken(t *testing.T) {
	env := server(t, dev.Options{Server: `allow_without_evidence = ["join_token"]`})
	token := joinToken(t, env.ServerSocket)
	address := spireAgent(t, env, `  NodeAttestor "join_token" { plugin_data {} }`, "-joinToken", token)
	serves(t, env, address, "/spire/agent/join_token/"+token)
}

func TestSPIREAgentX509POP(t *testing.T) {
	for name, rsaKey := range map[string]bool{"RSA": true, "ECDSA": false} {
		t.Run(name, func(t *testing.T) {
			node := pki(t, rsaKey)
			env := server(t, dev.Options{Server: fmt.Sprintf("allow_without_evidence = [\"x509pop\"]\nx509pop {\n  ca_bundle_path = %q\n}", node.root)})
			address := spireAgent(t, env, fmt.Sprintf(`  NodeAttestor "x509pop" { plugin_data {
    private_key_path = %q
    certificate_path = %q
  } }`, node.key, node.certificate))
			serves(t, env, address, node.id)
		})
	}
}

func TestSPIREAgentDevID(t *testing.T) {
	for name, ecc := range map[string]bool{"RSA": false, "ECC": true} {
		t.Run(name, func(t *testing.T) {
			node := devid(t, ecc)
			env := server(t, dev.Options{Server: fmt.Sprintf("allow_without_evidence = [\"tpm_devid\"]\ntpm_devid {\n%s}", node.roots)})
			address := spireAgent(t, env, fmt.Sprintf("  NodeAttestor \"tpm_devid\" { plugin_data {\n  tpm_device_path = %q\n%s  } }", strings.TrimPrefix(node.tpm, "unix:"), node.key))
			serves(t, env, address, node.id)
		})
	}
}

// serves checks that the agent's workload gets an identity.
func serves(t *testing.T, env *dev.Env, address, agent string) {
	t.Helper()
	register(t, env.ServerSocket, agent, "/by-spire-agent", "unix:uid:0")
	svid := fetch(t, address)
	if want := "spiffe://" + trustDomain + "/by-spire-agent"; svid.ID.String() != want {
		t.Errorf("SVID for %s, want %s", svid.ID, want)
	}
	t.Logf("SPIRE's agent %s at our server gave %s", agent, svid.ID)
}
