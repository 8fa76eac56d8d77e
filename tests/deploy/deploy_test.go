// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var units = []string{"assay-server.service", "assay-sensor.service", "assay-agent.service"}

const agentConf = `trust_domain = "example.org"
server_address = "127.0.0.1:8081"
trust_bundle_path = "/etc/assay/bundle.pem"
tpm {
  device = "unix:/run/tpm/tpm.sock"
}
`

// TestUnits starts server, sensor and agent as their units say; a workload gets its SVID.
func TestUnits(t *testing.T) {
	h := startHost(t)
	t.Run("Verify", func(t *testing.T) { testVerify(t, h) })
	t.Run("Permissions", func(t *testing.T) { testPermissions(t, h) })

	h.startServer(t)
	for _, daemon := range []string{"server", "agent"} {
		h.must(t, "assay-"+daemon, "validate", "--config", "/usr/share/doc/assay/examples/"+daemon+".hcl")
	}
	h.write(t, "/etc/assay/agent.hcl", agentConf)
	h.systemctl(t, "start", "assay-agent")
	t.Run("Power", func(t *testing.T) { testPower(t, h) })
	h.must(t, "assay", "entry", "create", "--spiffe-id", "spiffe://example.org/work", "--parent", h.nodeID(t), "--selector", "unix:uid:65534", "--selector", "evidence:tier:t2", "--selector", "unix:path:/usr/bin/assay")
	fetched(t, h)
	if said := h.log(); strings.Contains(said, "digests take more time than they need") {
		t.Errorf("the agent can not share digests: %s", said)
	}
	t.Run("Capabilities", func(t *testing.T) { testCapabilities(t, h) })
	t.Run("Restart", func(t *testing.T) {
		before := len(h.log())
		h.systemctl(t, "restart", "assay-agent")
		fetched(t, h)
		if said := h.since(before); strings.Contains(said, "kernel sensor attached") || strings.Count(said, "kernel sensor taken over") != 2 {
			t.Errorf("the sensor did not stay: %s", said)
		}
	})
	t.Run("Watchdog", func(t *testing.T) { testWatchdog(t, h) })
	t.Run("Tier3", func(t *testing.T) { testTier3(t, h) })
}

// startServer starts the server's unit, and tells the agent whom to trust.
func (h *host) startServer(t *testing.T) {
	t.Helper()
	h.write(t, "/etc/assay/tpm-makers.pem", string(h.ekCA))
	h.write(t, "/etc/assay/server.hcl", "trust_domain = \"example.org\"\nbind_address = \"127.0.0.1\"\ntpm {\n  ek_ca_path = \"/etc/assay/tpm-makers.pem\"\n}\n")
	h.systemctl(t, "start", "assay-server")
	h.must(t, "sh", "-c", "assay bundle show > /etc/assay/bundle.pem")
}

// testWatchdog stops a daemon's process, which hangs then for all that others see.
func testWatchdog(t *testing.T, h *host) {
	for _, unit := range []string{"assay-server", "assay-agent"} {
		h.limit(t, unit+".service", "WatchdogSec=2", "TimeoutAbortSec=1")
		h.systemctl(t, "restart", unit)
		pid := h.systemctl(t, "show", "-P", "MainPID", unit)
		h.must(t, "kill", "-STOP", strings.TrimSpace(pid))
		h.eventually(t, unit+" to be started again", func() error {
			if now := h.systemctl(t, "show", "-P", "MainPID", unit); now == pid || now == "0\n" {
				return fmt.Errorf("it is process %s", now)
			}
			return nil
		})
		h.limit(t, unit+".service")
	}
	h.systemctl(t, "restart", "assay-server", "assay-agent")
	fetched(t, h)
}

// nodeID waits for the node to be admitted.
func (h *host) nodeID(t *testing.T) (id string) {
	t.Helper()
	h.eventually(t, "the node", func() error {
		out, err := h.try("assay", "node", "list", "-o", "json")
		if id = regexp.MustCompile(`spiffe://example.org/spire/agent/tpm/\w+`).FindString(out); id == "" && err == nil {
			err = fmt.Errorf("the server knows %s", out)
		}
		return err
	})
	return id
}

// fetch asks for an SVID as a user other than root.
func (h *host) fetch() (string, error) {
	return h.try("env", "SPIFFE_ENDPOINT_SOCKET=unix:///run/assay/agent/api.sock", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "assay", "fetch", "x509")
}

func fetched(t *testing.T, h *host) {
	t.Helper()
	h.eventually(t, "an SVID", func() error {
		out, err := h.fetch()
		if err == nil && !strings.Contains(out, "spiffe://example.org/work") {
			err = fmt.Errorf("it got %s", out)
		}
		return err
	})
}

// scores are the worst exposures that a unit may have: 0 is none, 10 is all.
var scores = map[string]float64{"assay-server.service": 1.5, "assay-sensor.service": 2.3, "assay-agent.service": 2.6}

func testVerify(t *testing.T, h *host) {
	for _, u := range units {
		if out, err := h.try("systemd-analyze", "verify", "/usr/lib/systemd/system/"+u); err != nil || out != "" {
			t.Errorf("%s: %v %s", u, err, out)
		}
		out, _ := h.try("systemd-analyze", "security", "--offline=true", "--no-pager", "/usr/lib/systemd/system/"+u)
		score := regexp.MustCompile(`exposure level for .*: ([0-9.]+)`).FindStringSubmatch(out)
		if score == nil {
			t.Errorf("%s: no score in %s", u, out)
			continue
		}
		t.Log(score[0])
		if n, err := strconv.ParseFloat(score[1], 64); err != nil || n > scores[u] {
			t.Errorf("%s: exposure %s, want %v at most\n%s", u, score[1], scores[u], out)
		}
	}
}

func testPermissions(t *testing.T, h *host) {
	for path, want := range map[string]string{"/etc/assay/server.hcl": "640 root assay-server", "/etc/assay/agent.hcl": "640 root assay-agent", "/usr/bin/assay-agent": "755 root root"} {
		if got := strings.TrimSpace(h.must(t, "stat", "-c", "%a %U %G", path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// capabilities(7), by number.
const (
	dacReadSearch     = 1 << 2
	sysPtrace         = 1 << 19
	checkpointRestore = 1 << 40
)

// testPower looks at what the daemons may do now that they run.
func testPower(t *testing.T, h *host) {
	for unit, want := range map[string]uint64{"assay-server": 0, "assay-agent": dacReadSearch | sysPtrace | checkpointRestore} {
		pid := strings.TrimSpace(h.systemctl(t, "show", "-P", "MainPID", unit))
		status := h.must(t, "cat", "/proc/"+pid+"/status")
		if user := strings.TrimSpace(h.must(t, "stat", "-c", "%U", "/proc/"+pid+"/status")); user != unit {
			t.Errorf("%s runs as %s", unit, user)
		}
		for _, set := range []string{"CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"} {
			if want := fmt.Sprintf("%s:\t%016x", set, want); !strings.Contains(status, want) {
				t.Errorf("%s has no %q in\n%s", unit, want, status)
			}
		}
		for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(status, line) {
				t.Errorf("%s has no %q", unit, line)
			}
		}
	}
}
