// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"
	"time"
)

func TestServersConfigured(t *testing.T) {
	base := Config{TrustDomain: "example.org", ServerAddresses: []string{"a:1", "b:2"}, InsecureBootstrap: true, JoinToken: &JoinTokenConfig{Token: "x"}}
	p, err := base.prepare()
	if err != nil || p.servers.String() != "a:1, b:2" || p.rebootstrap.Mode != "never" || p.rebootstrap.Delay != 10*time.Minute {
		t.Errorf("%+v, %v", p, err)
	}
	for want, change := range map[string]func(*Config){
		"not both":                  func(c *Config) { c.ServerAddress = "c:3" },
		"server_address is missing": func(c *Config) { c.ServerAddresses = nil },
		"write host:port":           func(c *Config) { c.ServerAddresses = []string{"a"} },
		"would let whoever answers": func(c *Config) { c.RebootstrapMode = "auto" },
		"can not attest again": func(c *Config) {
			c.InsecureBootstrap, c.TrustBundleURL, c.RebootstrapMode = false, "https://a/b", "always"
		},
		"write \"never\"":                     func(c *Config) { c.RebootstrapMode = "on" },
		"rebootstrap_delay \"10\"":            func(c *Config) { c.RebootstrapDelay = "10" },
		"the server can not be authenticated": func(c *Config) { c.InsecureBootstrap = false },
	} {
		c := base
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
