// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testCapabilities takes each capability away from the units, and sees what fails: docs/deploy.md has the list.
func testCapabilities(t *testing.T, h *host) {
	for _, c := range []struct {
		unit, capability string
		// outcome is what is logged or answered; "" where nothing is missed at this machine's tier.
		outcome string
	}{
		{"assay-sensor", "CAP_BPF", "needs CAP_BPF"},
		{"assay-sensor", "CAP_PERFMON", "needs CAP_PERFMON"},
		{"assay-sensor", "CAP_NET_ADMIN", "needs CAP_NET_ADMIN"},
		{"assay-sensor", "CAP_DAC_READ_SEARCH", "needs CAP_DAC_READ_SEARCH"},
		{"assay-sensor", "CAP_CHOWN", "giving a pin away"},
		{"assay-agent", "CAP_DAC_READ_SEARCH", "needs CAP_DAC_READ_SEARCH"},
		{"assay-agent", "CAP_SYS_PTRACE", "no such file or directory"},
		{"assay-agent", "CAP_CHECKPOINT_RESTORE", ""}, // T1: code:libraries
	} {
		t.Run(c.unit+" without "+c.capability, func(t *testing.T) {
			h.systemctl(t, "stop", "assay-agent")
			h.must(t, "assay-agent", "unload")
			h.limit(t, c.unit+".service", without(t, c.unit, c.capability)...)
			defer h.limit(t, c.unit+".service")
			before := len(h.log())
			_, _ = h.try("systemctl", "--user", "start", "assay-agent") // what it says is in the log
			h.eventually(t, c.outcome, func() error {
				out, err := h.fetch()
				switch said := fmt.Sprint(h.since(before), out, err); {
				case c.outcome == "":
					return err
				case err == nil:
					t.Fatalf("an SVID without %s: %s", c.capability, out)
				case !strings.Contains(said, c.outcome):
					return errors.New(said)
				}
				return nil
			})
		})
	}
	h.systemctl(t, "restart", "assay-agent")
	fetched(t, h)
	t.Run("assay-sensor without CAP_DAC_OVERRIDE", func(t *testing.T) { testOverride(t, h) })
	h.systemctl(t, "restart", "assay-agent")
	fetched(t, h)
}

// without is the unit's capabilities but one, as lines for it.
func without(t *testing.T, unit, capability string) []string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/systemd/" + unit + ".service")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(string(regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(text)[1]))
	rest := slices.DeleteFunc(slices.Clone(all), func(c string) bool { return c == capability })
	if len(rest) != len(all)-1 {
		t.Fatalf("%s has no %s", unit, capability)
	}
	list := strings.Join(rest, " ")
	return []string{"AmbientCapabilities=", "AmbientCapabilities=" + list, "CapabilityBoundingSet=", "CapabilityBoundingSet=" + list}
}

// testTier3 runs the agent without a sensor and with two capabilities.
func testTier3(t *testing.T, h *host) {
	h.systemctl(t, "stop", "assay-agent")
	h.must(t, "assay-agent", "unload")
	h.limit(t, "assay-sensor.service", "ExecStart=", "ExecStart=/bin/false")
	h.limit(t, "assay-agent.service", "AmbientCapabilities=", "AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE", "CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE")
	h.write(t, "/etc/assay/agent.hcl", agentConf+"minimum_tier = \"t3\"\n")
	h.must(t, "assay", "entry", "create", "--spiffe-id", "spiffe://example.org/t3", "--parent", h.nodeID(t), "--selector", "unix:uid:65534", "--selector", "evidence:tier:t3", "--binary", "/usr/bin/assay")
	h.systemctl(t, "start", "assay-agent")
	h.eventually(t, "an SVID", func() error {
		out, err := h.fetch()
		if err == nil && (!strings.Contains(out, "spiffe://example.org/t3") || strings.Contains(out, "spiffe://example.org/work")) {
			err = fmt.Errorf("it got %s", out)
		}
		return err
	})
}

// testOverride starts a sensor over pins that are the agent's already, without the right to.
func testOverride(t *testing.T, h *host) {
	h.systemctl(t, "stop", "assay-agent")
	h.limit(t, "assay-sensor.service", without(t, "assay-sensor", "CAP_DAC_OVERRIDE")...)
	defer h.limit(t, "assay-sensor.service")
	before := len(h.log())
	if out, err := h.try("systemctl", "--user", "start", "assay-sensor"); err == nil || !strings.Contains(h.since(before), "permission denied") {
		t.Errorf("%s, %v: %s", out, err, h.since(before))
	}
}
