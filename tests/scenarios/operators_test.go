// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/cmd/dev"
)

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// planned is a line of what apply, diff and import print.
type planned struct {
	Action, Error string
	SPIFFEID      string `json:"spiffe_id"`
	EntryID       string `json:"entry_id"`
	Fields        []struct{ Field, From, To string }
}

// acts runs an entry command on a file and returns "action path" of each line.
func (m *machine) acts(t *testing.T, args ...string) (out []string, lines []planned) {
	t.Helper()
	m.must(t, &lines, append([]string{"entry"}, args...)...)
	for _, l := range lines {
		out = append(out, l.Action+" "+strings.TrimPrefix(l.SPIFFEID, "spiffe://example.org"))
	}
	return out, lines
}

// A set of entries is diffed, applied, changed, pruned and exported; what others made is not touched.
func TestApplyASet(t *testing.T) {
	theirs := shared.register(t, "/set/theirs", "--selector", "unix:uid:4801")
	text := func(hint, uid string) string {
		return file(t, "set.hcl", `set = "scenario"
entry "spiffe://example.org/set/a" {
  parent    = "`+shared.NodeID+`"
  selectors = ["unix:uid:4802"]
  hint      = "`+hint+`"
}
entry "spiffe://example.org/set/b" {
  parent    = "`+shared.NodeID+`"
  selectors = ["unix:uid:`+uid+`"]
}
`)
	}
	equal := func(what string, got []string, want ...string) {
		t.Helper()
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	first, second := text("one", "4803"), text("two", "4804")
	t.Cleanup(func() {
		_, _ = shared.assay(t, "entry", "apply", "--prune", "-f", file(t, "empty.hcl", `set = "scenario"`))
	})
	got, _ := shared.acts(t, "diff", "-f", first)
	equal("diff", got, "create /set/a", "create /set/b")
	got, _ = shared.acts(t, "apply", "-f", first)
	equal("apply", got, "created /set/a", "created /set/b")
	got, _ = shared.acts(t, "diff", "--exit-code", "-f", first)
	equal("nothing to do", got, "unchanged /set/a", "unchanged /set/b")
	got, lines := shared.acts(t, "diff", "-f", second)
	equal("diff of a change", got, "update /set/a", "create /set/b", "stale /set/b")
	if f := lines[0].Fields; len(f) != 1 || f[0].Field != "hint" || f[0].From != "one" || f[0].To != "two" {
		t.Errorf("the change: %+v", f)
	}
	if out, err := shared.assay(t, "entry", "diff", "--exit-code", "-f", second); err == nil {
		t.Errorf("diff --exit-code with differences: %s", out)
	}
	got, _ = shared.acts(t, "apply", "--prune", "-f", second)
	equal("prune", got, "updated /set/a", "created /set/b", "deleted /set/b")
	exported := file(t, "export.hcl", shared.must(t, nil, "entry", "export", "--set", "scenario"))
	if _, lines := shared.acts(t, "diff", "--exit-code", "--prune", "-f", exported); len(lines) < 3 {
		t.Errorf("an export is not what is there: %v", lines)
	}
	got, _ = shared.acts(t, "apply", "--prune", "-f", file(t, "empty.hcl", `set = "scenario"`))
	equal("an empty set", got, "deleted /set/a", "deleted /set/b")
	contains(t, "an entry that apply did not make", shared.must(t, nil, "entry", "show", theirs.ID), "unix:uid:4801")
}

// What can not be taken over is named, and the rest is taken over.
func TestImportFiles(t *testing.T) {
	path := file(t, "data.json", `{"entries": [
  {"entry_id": "imported-1", "spiffe_id": "spiffe://example.org/import/1", "parent_id": "`+shared.NodeID+`", "selectors": [{"type": "k8s", "value": "ns:default"}], "x509_svid_ttl": 60},
  {"spiffe_id": "spiffe://example.org/import/2", "parent_id": "`+shared.NodeID+`", "selectors": [{"type": "unix", "value": "sha265:aa"}]}
]}`)
	t.Cleanup(func() { _, _ = shared.assay(t, "entry", "delete", "imported-1") })
	out, err := shared.assay(t, "entry", "import", "-f", path, "-o", "json")
	if err == nil {
		t.Errorf("a typo was stored: %s", out)
	} else {
		contains(t, "import", err.Error(), "1 of 2 entries failed")
	}
	contains(t, "import", string(out), "imported-1", `did you mean \"unix:sha256:\u003cdigest\u003e\"?`)
	contains(t, "what was imported", shared.must(t, nil, "entry", "show", "imported-1"), "k8s:ns:default", "1m0s")
	// Our own JSON, from our own server.
	self := file(t, "show.json", shared.must(t, nil, "-o", "json", "entry", "show"))
	_, lines := shared.acts(t, "import", "-f", self)
	for _, l := range lines {
		if l.Action != "unchanged" {
			t.Errorf("our own entries: %+v", l)
		}
	}
	_, lines = shared.acts(t, "import", "--from", "unix://"+shared.ServerSocket)
	if len(lines) == 0 {
		t.Error("nothing was read from the socket")
	}
}

func TestTyposAreRefused(t *testing.T) {
	for selector, want := range map[string]string{
		"unix:uid:root":                     "<n> is a decimal number",
		"unx:uid:1":                         `did you mean "unix"?; if an attestor of yours has it, add it to foreign_selectors`,
		"parent:sha256:12":                  "64 lower-case hexadecimal digits",
		"process:capabilty:cap_net_admin":   `did you mean "process:capability:<capability>"?`,
		"tpm:secureboot:on":                 `did you mean "tpm:secureboot:enabled"?`,
		"evidence:tier:1":                   `did you mean "evidence:tier:t1"?`,
		"exec:filesystem:ext4":              "<filesystem> is a file system",
		"spiffe_id:/spire/agent/join_token": "<id> is a SPIFFE ID",
	} {
		out, err := shared.assay(t, "entry", "create", "--spiffe-id", "spiffe://example.org/typo", "--parent", shared.NodeID, "--selector", selector)
		if err == nil {
			t.Errorf("%s was stored: %s", selector, out)
			continue
		}
		contains(t, selector, err.Error(), want)
	}
}

// authority is a CA of another trust domain, in PEM.
func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "other.test"}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// public is the public key of a certificate, both in PEM.
func public(t *testing.T, certificate []byte) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(parsePEM(t, certificate).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// The authorities of a server, by hand: bundles and relationships of others, SVIDs, the log's level.
func TestOperateAuthorities(t *testing.T) {
	own := shared.must(t, nil, "bundle", "show", "--format", "spiffe")
	other := spiffeid.RequireTrustDomainFromString("other.test")
	if _, err := spiffebundle.Parse(other, []byte(own)); err != nil {
		t.Fatalf("bundle show --format spiffe: %v\n%s", err, own)
	}
	if out, err := shared.assay(t, "bundle", "set", "--id", "other.test", "--format", "spiffe", "--path", file(t, "bundle.json", own)); err == nil {
		t.Errorf("our own bundle was taken for another's: %s", out)
	}
	shared.must(t, nil, "bundle", "set", "--id", "other.test", "--path", file(t, "bundle.pem", authority(t)))
	t.Cleanup(func() { _, _ = shared.assay(t, "bundle", "delete", "--id", "other.test", "--mode", "dissociate") })
	contains(t, "bundle list", shared.must(t, nil, "bundle", "list"), "# other.test", "BEGIN CERTIFICATE")
	if n := strings.TrimSpace(shared.must(t, nil, "bundle", "count")); n != "2" {
		t.Errorf("bundle count: %s", n)
	}
	e := shared.register(t, "/linked", "--selector", "unix:uid:4810", "--federates-with", "other.test")
	if _, err := shared.assay(t, "bundle", "delete", "--id", "other.test"); err == nil {
		t.Error("a bundle that entries need was deleted")
	}

	const endpoint = "https://127.0.0.1:1/bundle"
	shared.must(t, nil, "federation", "create", "--trust-domain", "other.test", "--bundle-endpoint-url", endpoint, "--bundle-endpoint-profile", "https_web")
	t.Cleanup(func() { _, _ = shared.assay(t, "federation", "delete", "--id", "other.test") })
	shared.must(t, nil, "federation", "update", "--trust-domain", "other.test", "--bundle-endpoint-url", endpoint+"2", "--bundle-endpoint-profile", "https_spiffe", "--endpoint-spiffe-id", "spiffe://other.test/server")
	contains(t, "federation list", shared.must(t, nil, "federation", "list"), "other.test", endpoint+"2", "https_spiffe, spiffe://other.test/server")
	contains(t, "federation show", shared.must(t, nil, "federation", "show", "--trust-domain", "other.test"), endpoint+"2")
	if out, err := shared.assay(t, "federation", "refresh", "--id", "other.test"); err == nil {
		t.Errorf("an endpoint that is not there was fetched: %s", out)
	}
	shared.must(t, nil, "federation", "delete", "--id", "other.test")
	shared.must(t, nil, "bundle", "delete", "--id", "other.test", "--mode", "dissociate")
	if got := shared.must(t, nil, "entry", "show", e.ID); strings.Contains(got, "federates") {
		t.Errorf("the entry still federates: %s", got)
	}

	dir := t.TempDir()
	shared.must(t, nil, "x509", "mint", "--spiffe-id", "spiffe://example.org/minted", "--dns", "minted.example", "--ttl", "5m", "--write", dir)
	svid, err := os.ReadFile(filepath.Join(dir, "svid.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if c := parsePEM(t, svid); c.URIs[0].String() != "spiffe://example.org/minted" || c.DNSNames[0] != "minted.example" {
		t.Errorf("minted %v %v", c.URIs, c.DNSNames)
	}
	if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if parts := strings.Split(shared.must(t, nil, "jwt", "mint", "--spiffe-id", "spiffe://example.org/minted", "--audience", "a"), "."); len(parts) != 3 {
		t.Errorf("a token of %d parts", len(parts))
	}
	minted := filepath.Join(dir, "wit")
	shared.must(t, nil, "wit", "mint", "--spiffe-id", "spiffe://example.org/minted", "--public-key", file(t, "public.pem", public(t, svid)), "--write", minted)
	if wit, err := os.ReadFile(minted); err != nil || strings.Count(string(wit), ".") != 2 {
		t.Errorf("a WIT-SVID: %s, %v", wit, err)
	}
	if out, err := shared.assay(t, "wit", "mint", "--spiffe-id", "spiffe://example.org/minted", "--public-key", filepath.Join(dir, "key.pem")); err == nil {
		t.Errorf("a private key was taken for a public one: %s", out)
	}
	shared.must(t, nil, "logger", "set", "--level", "info")
	contains(t, "logger get", shared.must(t, nil, "logger", "get"), "info", "debug")
	contains(t, "logger reset", shared.must(t, nil, "logger", "reset"), "debug")
	contains(t, "healthcheck", shared.must(t, nil, "healthcheck"), "healthy")
	contains(t, "debug getinfo", shared.must(t, nil, "debug", "getinfo"), "uptime", "spiffe://example.org/spire/server")
}

// An authority's life, on a machine of its own: what is revoked is gone for all.
func TestOperateLocalAuthorities(t *testing.T) {
	m := start(t, dev.Options{})
	for _, kind := range []string{"x509", "jwt", "wit"} {
		var states struct {
			Active, Prepared, Old *struct {
				ID string `json:"authority_id"`
			}
		}
		show := func() {
			t.Helper()
			states.Active, states.Prepared, states.Old = nil, nil, nil
			m.must(t, &states, "localauthority", kind, "show")
		}
		show()
		if states.Active == nil {
			t.Fatalf("%s: no active authority", kind)
		}
		old := states.Active.ID
		if states.Prepared == nil {
			m.must(t, nil, "localauthority", kind, "prepare")
			show()
		}
		m.must(t, nil, "localauthority", kind, "activate", "--authority-id", states.Prepared.ID)
		m.must(t, nil, "localauthority", kind, "taint", "--authority-id", old)
		m.must(t, nil, "localauthority", kind, "revoke", "--authority-id", old)
		if _, err := m.assay(t, "localauthority", kind, "taint", "--authority-id", old); err == nil {
			t.Errorf("%s: an authority that was revoked is tainted", kind)
		}
		var bundle json.RawMessage
		m.must(t, &bundle, "bundle", "show")
		show()
		if states.Active.ID == old || kind != "x509" && strings.Contains(string(bundle), old) {
			t.Errorf("%s: %s is still there", kind, old)
		}
	}
	if _, err := m.assay(t, "upstreamauthority", "taint", "--subject-key-id", "00"); err == nil {
		t.Error("an upstream authority that is not there was tainted")
	}
}

// The server tells which entries a process on a node matches, which nearly, and which are for other nodes.
func TestExplainOnServer(t *testing.T) {
	const td = "spiffe://example.org"
	shared.registerUnder(t, "/pool", td+"/spire/server", "--selector", "tpm:key:tpm-resident")
	shared.registerUnder(t, "/other-pool", td+"/spire/server", "--selector", "tpm:key:tpm-resident", "--selector", "tpm:firmware:00000000000000ff")
	match := shared.registerUnder(t, "/explain/match", td+"/pool", "--selector", "unix:uid:4901")
	nested := shared.registerUnder(t, "/explain/nested", td+"/explain/match", "--selector", "unix:gid:4901")
	near := shared.registerUnder(t, "/explain/near", shared.NodeID, "--selector", "unix:uid:4901", "--selector", "unix:user:nobody", "--selector", "unix:group:nogroup")
	far := shared.registerUnder(t, "/explain/far", td+"/other-pool", "--selector", "unix:uid:4901")

	type found struct {
		EntryID string `json:"entry_id"`
		Missing []string
	}
	var x struct {
		State                       string
		Matches, Nearest, Elsewhere []found
	}
	shared.must(t, &x, "explain", "--node", shared.NodeID, "--selector", "unix:uid:4901", "--selector", "unix:gid:4901", "--selector", "unix:group:nogroup", "--nearest", "1")
	ids := map[string]bool{}
	for _, m := range x.Matches {
		ids[m.EntryID] = true
	}
	if x.State != "admitted" || len(ids) != 2 || !ids[match.ID] || !ids[nested.ID] {
		t.Errorf("matches %+v of a node that is %s", x.Matches, x.State)
	}
	if len(x.Nearest) != 1 || x.Nearest[0].EntryID != near.ID || len(x.Nearest[0].Missing) != 1 || x.Nearest[0].Missing[0] != "unix:user:nobody" {
		t.Errorf("nearest %+v", x.Nearest)
	}
	if len(x.Elsewhere) != 1 || x.Elsewhere[0].EntryID != far.ID || len(x.Elsewhere[0].Missing) != 1 || x.Elsewhere[0].Missing[0] != "tpm:firmware:00000000000000ff" {
		t.Errorf("elsewhere %+v", x.Elsewhere)
	}
	text := shared.must(t, nil, "explain", "--node", shared.NodeID, "--selector", "unix:uid:4901")
	contains(t, "explain as text", text, "is admitted", "matches entry "+match.ID, "not entry "+near.ID, "the process lacks", "which is for "+td+"/other-pool and not for this node", "the node lacks  tpm:firmware:00000000000000ff")

	// A process of this machine, by the agent and by its facts, carried to the server.
	w := shared.startWorkload(t, self)
	w.next(t, shared)
	mine := shared.create(t, "/explain/mine", "--selector", "unix:sha256:"+digestOf(t, self), "--selector", "evidence:observed")
	facts := file(t, "facts.json", shared.must(t, nil, "-o", "json", "explain", "--pid", w.pid()))
	contains(t, "explain --node --pid", shared.must(t, nil, "explain", "--node", shared.NodeID, "--pid", w.pid()), "the agent's view: ", "known to be right", "matches entry "+mine.ID)
	contains(t, "explain --node --facts", shared.must(t, nil, "explain", "--node", shared.NodeID, "--facts", facts), "matches entry "+mine.ID)
	contains(t, "explain --pid", shared.must(t, nil, "explain", "--pid", w.pid()), "the agent's view: ", "matches entry "+mine.ID)
	for _, bad := range [][]string{{"explain"}, {"explain", "--selector", "unix:uid:1"}, {"explain", "--node", td + "/spire/agent/none", "--selector", "unix:uid:1"},
		{"explain", "--node", td + "/spire/agent/none", "--pid", "1"}, {"explain", "--node", shared.NodeID}} {
		if out, err := shared.assay(t, bad...); err == nil {
			t.Errorf("%v was accepted: %s", bad, out)
		}
	}
}
