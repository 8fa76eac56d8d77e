// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// assay runs our CLI at a server's private socket.
func assay(t *testing.T, socket string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../../bin/assay", append([]string{"--server-socket", socket}, args...)...).CombinedOutput()
	return string(out), err
}

func mustAssay(t *testing.T, socket string, args ...string) string {
	t.Helper()
	out, err := assay(t, socket, args...)
	if err != nil {
		t.Fatalf("assay %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// planned is a line of what import prints.
type planned struct {
	Action  string
	EntryID string `json:"entry_id"`
	Error   string
}

// TestImportFromSPIRE: all entries of SPIRE's server come over by its API, by its CLI's JSON, and by its -data files, the
// same each time and with their ids; a typo that it stored does not.
func TestImportFromSPIRE(t *testing.T) {
	spire := program(t, "SPIRE_SERVER")
	f := spireServer(t, "")
	data := write(t, filepath.Join(t.TempDir(), "data.json"), `{"entries": [
  {"spiffe_id": "spiffe://`+trustDomain+`/full", "parent_id": "spiffe://`+trustDomain+`/node", "selectors": [{"type": "unix", "value": "uid:1000"}, {"type": "k8s", "value": "ns:a"}],
   "x509_svid_ttl": 120, "jwt_svid_ttl": 60, "hint": "h", "dns_names": ["b.example", "a.example"], "admin": true, "downstream": true, "entryExpiry": 4000000000,
   "additional_attributes": {"jwt_svid_include_jti": true, "disable_x509_svid_prefetch": true}},
  {"spiffe_id": "spiffe://`+trustDomain+`/node", "parent_id": "spiffe://`+trustDomain+`/spire/server", "selectors": [{"type": "x509pop", "value": "subject:cn:node"}]},
  {"spiffe_id": "spiffe://`+trustDomain+`/typo", "parent_id": "spiffe://`+trustDomain+`/node", "selectors": [{"type": "unix", "value": "uid1000"}]}
]}`)
	cli := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), spire, append(args, "-socketPath", f.socket)...).Output()
		if err != nil {
			t.Fatalf("spire-server %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	cli("entry", "create", "-data", data)
	shown := write(t, filepath.Join(t.TempDir(), "show.json"), cli("entry", "show", "-output", "json"))

	env := server(t, dev.Options{ServerOnly: true, EKCA: write(t, filepath.Join(t.TempDir(), "ca.pem"), f.bundle)})
	out, err := assay(t, env.ServerSocket, "entry", "import", "--from", "unix://"+f.socket)
	if err == nil || !strings.Contains(out, "1 of 3 entries failed") || !strings.Contains(out, `did you mean "unix:uid:<n>"`) {
		t.Errorf("import: %v\n%s", err, out)
	}
	if n := strings.TrimSpace(mustAssay(t, env.ServerSocket, "entry", "count")); n != "2" {
		t.Errorf("%s entries came over", n)
	}
	// SPIRE's own words for the entries are the same on both servers, the ids included.
	var here, there struct{ Entries []map[string]any }
	ours, err := exec.CommandContext(t.Context(), spire, "entry", "show", "-output", "json", "-socketPath", env.ServerSocket).Output()
	fatal(t, err)
	fatal(t, json.Unmarshal(ours, &here))
	fatal(t, json.Unmarshal([]byte(cli("entry", "show", "-output", "json")), &there))
	byID := map[any]map[string]any{}
	for _, e := range there.Entries {
		byID[e["id"]] = e
	}
	for _, e := range here.Entries {
		want := byID[e["id"]]
		for _, field := range []string{"created_at", "revision_number"} {
			delete(e, field)
			delete(want, field)
		}
		a, err := json.Marshal(e)
		fatal(t, err)
		b, err := json.Marshal(want)
		fatal(t, err)
		if string(a) != string(b) {
			t.Errorf("got  %s\nwant %s", a, b)
		}
	}
	for _, path := range []string{shown, data} {
		out, _ := exec.CommandContext(t.Context(), "../../bin/assay", "--server-socket", env.ServerSocket, "entry", "import", "-f", path, "-o", "json").Output()
		var lines []planned
		fatal(t, json.Unmarshal(out, &lines))
		for _, l := range lines {
			if l.Action != "unchanged" && l.Action != "failed" {
				t.Errorf("%s: %+v", filepath.Base(path), l)
			}
		}
		if len(lines) != 3 {
			t.Errorf("%s: %d entries", filepath.Base(path), len(lines))
		}
	}
}

// TestOurCLIAtSPIRE: the verbs that we share with SPIRE's CLI mean the same at its server.
func TestOurCLIAtSPIRE(t *testing.T) {
	f := spireServer(t, "")
	do := func(args ...string) string { t.Helper(); return mustAssay(t, f.socket, args...) }
	bundle := write(t, filepath.Join(t.TempDir(), "bundle.json"), do("bundle", "show", "--format", "spiffe"))
	do("bundle", "set", "--id", "other.test", "--format", "spiffe", "--path", bundle)
	do("bundle", "list", "--id", "other.test")
	if n := strings.TrimSpace(do("bundle", "count")); n != "2" {
		t.Errorf("%s bundles", n)
	}
	do("bundle", "delete", "--id", "other.test", "--mode", "dissociate")
	do("federation", "create", "--trust-domain", "other.test", "--bundle-endpoint-url", "https://127.0.0.1:1/", "--bundle-endpoint-profile", "https_web")
	do("federation", "update", "--trust-domain", "other.test", "--bundle-endpoint-url", "https://127.0.0.1:1/2", "--bundle-endpoint-profile", "https_spiffe",
		"--endpoint-spiffe-id", "spiffe://other.test/server", "--trust-domain-bundle-path", bundle, "--trust-domain-bundle-format", "spiffe")
	if out := do("federation", "list"); !strings.Contains(out, "https_spiffe, spiffe://other.test/server") || !strings.Contains(out, "1 X.509") {
		t.Errorf("federation list: %s", out)
	}
	do("federation", "show", "--trust-domain", "other.test")
	if out, err := assay(t, f.socket, "federation", "refresh", "--id", "other.test"); err == nil {
		t.Errorf("an endpoint that is not there was fetched: %s", out)
	}
	do("federation", "delete", "--id", "other.test")
	do("debug", "getinfo") // after the revocation below SPIRE's server does not answer this: its own SVID is no longer good
	for _, kind := range []string{"x509", "jwt"} {
		var s struct{ Active struct{ Authority_id string } }
		fatal(t, json.Unmarshal([]byte(do("-o", "json", "localauthority", kind, "show")), &s))
		var p struct{ Prepared_authority struct{ Authority_id string } }
		fatal(t, json.Unmarshal([]byte(do("-o", "json", "localauthority", kind, "prepare")), &p))
		do("localauthority", kind, "activate", "--authority-id", p.Prepared_authority.Authority_id)
		do("localauthority", kind, "taint", "--authority-id", s.Active.Authority_id)
		do("localauthority", kind, "revoke", "--authority-id", s.Active.Authority_id)
	}
	do("x509", "mint", "--spiffe-id", "spiffe://"+trustDomain+"/x", "--dns", "x.example")
	do("jwt", "mint", "--spiffe-id", "spiffe://"+trustDomain+"/x", "--audience", "a")
	do("logger", "set", "--level", "warn")
	do("logger", "get")
	do("logger", "reset")
	do("healthcheck")
	entries := write(t, filepath.Join(t.TempDir(), "e.hcl"), "set = \"x\"\nentry \"spiffe://"+trustDomain+"/w\" {\n  parent = \"spiffe://"+trustDomain+"/n\"\n  selectors = [\"unix:uid:1\"]\n}\n")
	do("entry", "apply", "-f", entries)
	do("entry", "diff", "--exit-code", "--prune", "-f", entries)
	if out := do("entry", "apply", "--prune", "-f", write(t, filepath.Join(t.TempDir(), "none.hcl"), "set = \"x\"\n")); !strings.Contains(out, "1 deleted") {
		t.Errorf("prune: %s", out)
	}
}
