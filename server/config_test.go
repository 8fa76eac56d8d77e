// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"strings"
	"testing"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/tpm/policy"
)

func TestConfig(t *testing.T) {
	good := func() server.Config {
		return server.Config{TrustDomain: "example.org", JoinToken: &server.JoinTokenConfig{}}
	}
	if err := good().Validate(); err != nil {
		t.Errorf("the smallest configuration: %v", err)
	}
	hashes := []string{strings.Repeat("0", 64)}
	group := func(g policy.GroupConfig) func(*server.Config) {
		g.Name = "db"
		return func(c *server.Config) { c.NodeGroups = []policy.GroupConfig{g} }
	}
	for want, change := range map[string]func(*server.Config){
		"trust_domain":                 func(c *server.Config) { c.TrustDomain = "Not A Domain" },
		"data_dir":                     func(c *server.Config) { c.DataDir = "data" },
		"bind_port":                    func(c *server.Config) { c.BindPort = 70000 },
		"log_level":                    func(c *server.Config) { c.LogLevel = "loud" },
		"ca_ttl 2h0m0s is too short":   func(c *server.Config) { c.CATTL = "2h" },
		"default_jwt_svid_ttl":         func(c *server.Config) { c.DefaultJWTSVIDTTL = "1" },
		"is too short for SVIDs of 5h": func(c *server.Config) { c.DefaultJWTSVIDTTL = "5h" },
		"ca_key_type \"ed25519\"":      func(c *server.Config) { c.CAKeyType = "ed25519" },
		"jwt_key_type":                 func(c *server.Config) { c.JWTKeyType = "rsa-1024" },
		"there is no key_manager":      func(c *server.Config) { c.KeyManager = &server.KeyManagerConfig{Type: "vault"} },
		"takes no settings":            func(c *server.Config) { c.KeyManager = &server.KeyManagerConfig{Type: "disk", Path: "/x"} },
		"keys of type ec-p256 only":    func(c *server.Config) { c.KeyManager, c.CAKeyType = &server.KeyManagerConfig{Type: "tpm"}, "rsa-2048" },
		"belong to another type":       func(c *server.Config) { c.KeyManager = &server.KeyManagerConfig{Type: "tpm", Module: "/m.so"} },
		"\"pkcs11\": write token_label": func(c *server.Config) {
			c.KeyManager = &server.KeyManagerConfig{Type: "pkcs11", Module: "/m.so", PINPath: "/pin"}
		},
		"module \"m.so\"": func(c *server.Config) {
			c.KeyManager = &server.KeyManagerConfig{Type: "pkcs11", Module: "m.so", TokenLabel: "a", PINPath: "/pin"}
		},
		"pin_path \"\"": func(c *server.Config) {
			c.KeyManager = &server.KeyManagerConfig{Type: "pkcs11", Module: "/m.so", TokenLabel: "a"}
		},
		"no upstream_authority":              func(c *server.Config) { c.UpstreamAuthority = &server.UpstreamConfig{Type: "vault"} },
		"upstream_authority: server_address": func(c *server.Config) { c.UpstreamAuthority = &server.UpstreamConfig{Type: "spire"} },
		"upstream_authority: workload_api_socket": func(c *server.Config) {
			c.UpstreamAuthority = &server.UpstreamConfig{Type: "spire", ServerAddress: "a.example.org", WorkloadAPISocket: "w.sock"}
		},
		"upstream_authority: server_port": func(c *server.Config) {
			c.UpstreamAuthority = &server.UpstreamConfig{Type: "spire", ServerAddress: "a.example.org", ServerPort: -1, WorkloadAPISocket: "/w.sock"}
		},
		"upstream_authority \"spire\" has settings": func(c *server.Config) {
			c.UpstreamAuthority = &server.UpstreamConfig{Type: "spire", ServerAddress: "a.example.org", WorkloadAPISocket: "/w.sock", KeyFilePath: "/k"}
		},
		"upstream_authority: the upstream CA's": func(c *server.Config) { c.UpstreamAuthority = &server.UpstreamConfig{Type: "disk"} },
		"agent_ttl":                             func(c *server.Config) { c.AgentTTL = "soon" },
		"no node could attest":                  func(c *server.Config) { c.JoinToken = nil },
		"there is no attestor type":             func(c *server.Config) { c.AllowWithoutEvidence = []string{"sshpop"} },
		"ek_ca_path":                            func(c *server.Config) { c.TPM = &server.TPMConfig{EKCAPath: "/none"} },
		"requote_interval":                      func(c *server.Config) { c.TPM = &server.TPMConfig{EKHashes: hashes, RequoteInterval: "1ms"} },
		"ima_memory_mib":                        func(c *server.Config) { c.TPM = &server.TPMConfig{EKHashes: hashes, IMAMemoryMiB: 127} },
		"readmit":                               func(c *server.Config) { c.TPM = &server.TPMConfig{EKHashes: hashes, Readmit: "nobody"} },
		"set ca_bundle_path":                    func(c *server.Config) { c.X509POP = &server.X509POPConfig{} },
		"keep one": func(c *server.Config) {
			c.X509POP = &server.X509POPConfig{CABundlePath: "/a", CABundlePaths: []string{"/b"}}
		},
		"ca_bundle_path: open /none":    func(c *server.Config) { c.X509POP = &server.X509POPConfig{CABundlePath: "/none"} },
		"devid_ca_path: open /none":     func(c *server.Config) { c.DevID = &server.DevIDConfig{DevIDCAPath: "/none"} },
		"kernels":                       group(policy.GroupConfig{Kernels: []string{"x"}}),
		"require_pcrs: 16":              group(policy.GroupConfig{RequirePCRs: []int{16}}),
		"require_pcrs: set golden":      group(policy.GroupConfig{RequirePCRs: []int{4}}),
		"lockdown":                      group(policy.GroupConfig{Lockdown: "some"}),
		"firmware_min":                  group(policy.GroupConfig{FirmwareMin: "1.2"}),
		"ima_allow: open /none":         group(policy.GroupConfig{IMAAllow: []string{"/none"}}),
		"golden: open /none":            group(policy.GroupConfig{Golden: "/none"}),
		"only nodes with a TPM":         group(policy.GroupConfig{SecureBoot: true}),
		"a name of its own":             func(c *server.Config) { c.NodeGroups = make([]policy.GroupConfig, 1) },
		"ek_hashes":                     func(c *server.Config) { c.TPM = &server.TPMConfig{EKHashes: []string{"x"}} },
		"store: ca_path":                func(c *server.Config) { c.Store = &server.StoreConfig{CAPath: "/none"} },
		"store: cert_path and key_path": func(c *server.Config) { c.Store = &server.StoreConfig{CertPath: "/none"} },
	} {
		c := good()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}
