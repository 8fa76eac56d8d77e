// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"strings"
	"testing"

	"github.com/assay-id/assay/server"
)

func TestConfig(t *testing.T) {
	good := func() server.Config {
		return server.Config{TrustDomain: "example.org", JoinToken: &server.JoinTokenConfig{}}
	}
	if err := good().Validate(); err != nil {
		t.Errorf("the smallest configuration: %v", err)
	}
	for want, change := range map[string]func(*server.Config){
		"trust_domain":                  func(c *server.Config) { c.TrustDomain = "Not A Domain" },
		"data_dir":                      func(c *server.Config) { c.DataDir = "data" },
		"bind_port":                     func(c *server.Config) { c.BindPort = 70000 },
		"log_level":                     func(c *server.Config) { c.LogLevel = "loud" },
		"ca_ttl 2h0m0s is too short":    func(c *server.Config) { c.CATTL = "2h" },
		"agent_ttl":                     func(c *server.Config) { c.AgentTTL = "soon" },
		"no node could attest":          func(c *server.Config) { c.JoinToken = nil },
		"there is no attestor type":     func(c *server.Config) { c.AllowWithoutEvidence = []string{"x509pop"} },
		"ek_ca_path":                    func(c *server.Config) { c.TPM = &server.TPMConfig{EKCAPath: "/none"} },
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
