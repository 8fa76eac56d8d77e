// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

// TestFederation: SPIRE's server serves its bundle by https_web and ours by https_spiffe, and each
// fetches the other's. All is asked with SPIRE's CLI.
func TestFederation(t *testing.T) {
	spire := program(t, "SPIRE_SERVER")
	dir, err := os.MkdirTemp("/run", "spire-")
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	theirs, ours := freeAddress(t), freeAddress(t)
	certificate, key := loopback(t, dir)

	socket := filepath.Join(dir, "api.sock")
	run(t, spire, "run", "-config", write(t, filepath.Join(dir, "server.conf"), fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = %s
  socket_path = %q
  trust_domain = "other.test"
  data_dir = %q
  federation {
    bundle_endpoint {
      address = "127.0.0.1"
      port = %s
      refresh_hint = "5m"
      profile "https_web" {
        serving_cert_file {
          cert_file_path = %q
          key_file_path = %q
          file_sync_interval = "1h"
        }
      }
    }
  }
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}
`, port(t, freeAddress(t)), socket, filepath.Join(dir, "data"), port(t, theirs), certificate, key, filepath.Join(dir, "data.sqlite3"))))

	cli := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), spire, args...).CombinedOutput()
		return string(out), err
	}
	eventually := func(what string, args ...string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) {
			out, err := cli(args...)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v\n%s", what, err, out)
			}
		}
	}
	eventually("SPIRE's server", "bundle", "show", "-socketPath", socket)
	env := server(t, dev.Options{ServerOnly: true, EKCA: certificate, Server: fmt.Sprintf(`federation {
  web_ca_path = %q
  bundle_endpoint {
    address = "127.0.0.1"
    port = %s
    profile "https_spiffe" {}
  }
  federates_with "other.test" {
    bundle_endpoint_url = "https://%s/"
    bundle_endpoint_profile "https_web" {}
  }
}`, certificate, port(t, ours), theirs)})
	eventually("an entry with us that needs their bundle", "entry", "create", "-socketPath", env.ServerSocket, "-parentID", "spiffe://"+trustDomain+"/agent",
		"-spiffeID", "spiffe://"+trustDomain+"/w", "-selector", "unix:uid:0", "-federatesWith", "spiffe://other.test")

	bundle := write(t, filepath.Join(dir, "ours.json"), insecureGet(t, "https://"+ours+"/"))
	eventually("our bundle with them", "federation", "create", "-socketPath", socket, "-trustDomain", trustDomain, "-bundleEndpointURL", "https://"+ours+"/",
		"-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", "spiffe://"+trustDomain+"/spire/server",
		"-trustDomainBundlePath", bundle, "-trustDomainBundleFormat", "spiffe")
	eventually("a refresh by them", "federation", "refresh", "-socketPath", socket, "-id", trustDomain)
	out, err := cli("bundle", "list", "-socketPath", socket, "-id", "spiffe://"+trustDomain, "-format", "spiffe")
	if err != nil || !strings.Contains(out, `"spiffe_refresh_hint": 300`) {
		t.Errorf("they have %s, %v", out, err)
	}
}

func port(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	fatal(t, err)
	return port
}

// insecureGet reads what an operator would have carried over.
func insecureGet(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get(url)
	fatal(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fatal(t, err)
	return string(body)
}
