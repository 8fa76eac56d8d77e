// SPDX-License-Identifier: Apache-2.0

// Package tests holds what crosses packages and processes: the layer rules, the scenarios
// against the real binaries, and the guests.
package tests

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/assay-id/assay/"

// layers are the storeys of DESIGN §4, lowest first. A package may import lower storeys only.
var layers = [][]string{
	{"selectors", "observe", "tpm", "tpm/octets", "tpm/structures", "proto/x509pop", "proto/loglevel", "tpm/eventlog", "tpm/ima", "proto/evidence", "proto/node", "proto/agentadmin", "proto/nodeadmin", "proto/revocation", "proto/entry"},
	{"bpf", "bpf/hooks", "bpf/cgroup", "bpf/record", "agent/bootstrap", "agent/clock", "agent/life", "agent/metrics", "agent/limits", "agent/process", "agent/keys", "agent/servers", "agent/trust", "tpm/device", "tpm/devid", "tpm/verify", "tpm/policy", "tpm/swtpm", "server/keys", "server/keys/pkcs11", "server/metrics", "server/store/member", "server/store", "server/entries/replica", "server/store/cluster", "server/webcert", "server/rego"},
	{"agent/caller", "agent/code", "agent/digest", "agent/history", "agent/lineage", "agent/proof", "agent/upstream", "agent/upstream/wire", "agent/svids", "server/nodes", "server/entries", "server/ca", "server/ca/bundle", "server/ca/mint", "server/ca/upstream", "server/revocation", "server/federation", "server/oidc", "server/gate"},
	{"agent/attest", "agent/delivery", "agent/keep", "agent/workloadapi", "agent/sds", "agent/broker", "agent/delegated", "agent/operate", "server/attest", "server/api", "server/api/entry", "server/api/trust", "server/api/operate", "server/api/wire"},
	{"agent", "server"},
}

// allowed names imports within a storey that are by design.
var allowed = map[string][]string{
	"server/keys":          {"server/keys/pkcs11"},
	"server/store":         {"server/store/member"},
	"server/ca":            {"server/ca/bundle", "server/ca/mint"},
	"server/ca/upstream":   {"server/ca/bundle", "server/ca/mint"},
	"server/store/cluster": {"server/store/member"},
	"proto/node":           {"proto/evidence"},
	"proto/agentadmin":     {"proto/evidence"},
	"bpf":                  {"bpf/hooks", "bpf/cgroup", "bpf/record"},
	"server/api":           {"server/api/entry", "server/api/trust", "server/api/operate", "server/api/wire"},
	"server/api/entry":     {"server/api/wire"},
	"agent/workloadapi":    {"agent/delivery"},
	"agent/sds":            {"agent/delivery"},
	"agent/broker":         {"agent/delivery"},
	"agent/delegated":      {"agent/delivery"},
	"agent/upstream":       {"agent/upstream/wire"},
	"server/api/trust":     {"server/api/wire"},
	"server/api/operate":   {"server/api/wire"},
	// What a TPM and its logs are read with, and what their digests are.
	"tpm":            {"tpm/octets"},
	"tpm/structures": {"tpm/octets"},
	"tpm/eventlog":   {"tpm/octets", "selectors"},
	"tpm/ima":        {"tpm/octets", "selectors"},
}

// only says which packages may import something, and why.
var only = []struct{ path, holders, reason string }{
	{"github.com/cilium/ebpf", "bpf", "the kernel boundary is one package, so that nothing above it can depend on how a record was made"},
	{"github.com/google/go-tpm", "tpm", "TPM structures stop at the tpm packages"},
	{"github.com/open-policy-agent/opa", "server/rego", "policies' language stops at one package"},
	{"go.etcd.io/", "server/store", "the store can be exchanged"},
	{"github.com/miekg/pkcs11", "cmd/assay-pkcs11", "a vendor's library may crash or hang one small program, and the others stay static"},
	{"google.golang.org/protobuf", "proto server/store/cluster server/gate server/api agent/upstream agent/workloadapi agent cmd", "protobuf types stop at the edges"},
	{"github.com/spiffe/spire-api-sdk", "proto server/api server/ca/upstream agent/upstream agent/delegated agent/operate cmd", "SPIRE's wire types stop at the edges"},
	{module + "agent", "agent cmd tests", "the server does not know the agent's code"},
	{module + "server", "server cmd tests", "the agent does not know the server's code"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func storey(path string) int {
	for i, names := range layers {
		if slices.Contains(names, path) {
			return i
		}
	}
	return len(layers) // cmd, tests and everything below them
}

func TestArrowsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if !ours || slices.Contains(allowed[from], to) {
				continue
			}
			if storey(from) < len(layers) && storey(to) >= storey(from) {
				t.Errorf("%s (storey %d) imports %s (storey %d): arrows point down, and neighbours meet through an interface that the consumer declares",
					from, storey(from), to, storey(to))
			}
		}
	}
}

func TestEveryPackageHasAStorey(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		top, _, _ := strings.Cut(path, "/")
		if storey(path) == len(layers) && top != "cmd" && top != "tests" && !testHelper(path) {
			t.Errorf("%s has no storey: put it into layers in this file and into ARCHITECTURE.md", path)
		}
	}
}

// testHelper packages are imported by tests only.
func testHelper(path string) bool { return strings.HasSuffix(path, "test") }

func TestOnlyTheirHoldersImport(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if testHelper(from) || strings.HasPrefix(from, "tests") {
			continue
		}
		for _, imp := range p.Imports {
			for _, rule := range only {
				if imp != rule.path && !strings.HasPrefix(imp, strings.TrimSuffix(rule.path, "/")+"/") {
					continue
				}
				ok := slices.ContainsFunc(strings.Fields(rule.holders), func(h string) bool { return from == h || strings.HasPrefix(from, h+"/") })
				if !ok {
					t.Errorf("%s imports %s, which only %s may: %s", from, imp, rule.holders, rule.reason)
				}
			}
		}
	}
}
