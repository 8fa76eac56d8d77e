// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func parsePEM(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEntryCommands(t *testing.T) {
	e := shared.create(t, "/cli", "--selector", "unix:uid:4711", "--hint", "one")
	if _, err := shared.assay(t, "entry", "create", "--spiffe-id", "spiffe://example.org/cli", "--parent", shared.NodeID, "--selector", "unix:uid:4711"); err == nil {
		t.Error("the same registration was made twice")
	} else {
		contains(t, "a duplicate", err.Error(), "similar entry already exists", "assay entry update "+e.ID)
	}
	var got []entry
	shared.must(t, &got, "entry", "update", e.ID, "--hint", "two")
	if got[0].Hint != "two" || got[0].RevisionNumber != "1" || len(got[0].Selectors) != 1 {
		t.Errorf("updated: %+v", got)
	}
	shared.must(t, &got, "entry", "show", "--selector", "unix:uid:4711")
	if len(got) != 1 || got[0].ID != e.ID {
		t.Errorf("shown: %+v", got)
	}
	for _, bad := range [][]string{
		{"entry", "show", "nope"},
		{"entry", "create", "--spiffe-id", "example.org/x", "--parent", shared.NodeID, "--selector", "unix:uid:1"},
		{"entry", "create", "--spiffe-id", "spiffe://example.org/spire/x", "--parent", shared.NodeID, "--selector", "unix:uid:1"},
		{"entry", "create", "--spiffe-id", "spiffe://example.org/x", "--parent", shared.NodeID, "--selector", "unix"},
		{"entry", "create", "--spiffe-id", "spiffe://example.org/x", "--parent", shared.NodeID},
		{"entry", "delete", "nope"},
		{"-o", "yaml", "node", "list"},
	} {
		if out, err := shared.assay(t, bad...); err == nil {
			t.Errorf("%v was accepted: %s", bad, out)
		}
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "entries.hcl")
	write := func(hint string) {
		text := `entry "spiffe://example.org/applied" {
  parent    = "` + shared.NodeID + `"
  selectors = ["unix:uid:4712"]
  binaries  = ["/bin/sh"]
  hint      = "` + hint + `"
}
`
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var id string
	for _, step := range []struct{ hint, action string }{{"a", "created"}, {"a", "unchanged"}, {"b", "updated"}, {"b", "unchanged"}} {
		write(step.hint)
		var got []struct {
			Action  string
			EntryID string `json:"entry_id"`
		}
		shared.must(t, &got, "entry", "apply", "-f", path)
		if len(got) != 1 || got[0].Action != step.action || (id != "" && got[0].EntryID != id) {
			t.Errorf("hint %s: %+v, want %s", step.hint, got, step.action)
		}
		id = got[0].EntryID
	}
	shared.must(t, nil, "entry", "delete", id)
}

// Every command that shows something does so as JSON, too.
func TestJSONEverywhere(t *testing.T) {
	shared.create(t, "/json", "--binary", bin("assay"))
	for _, args := range [][]string{
		{"entry", "show"}, {"node", "list"}, {"node", "show", shared.NodeID}, {"tpm", "roots"}, {"tpm", "inventory", "list"}, {"tpm", "inventory", "export"}, {"token", "create"}, {"bundle", "show"},
		{"fetch", "x509"}, {"explain", "--pid", "1"}, {"server", "status"}, {"agent", "status"}, {"healthcheck"}, {"debug", "getinfo"}, {"logger", "get"},
		{"bundle", "list"}, {"bundle", "count"}, {"federation", "list"}, {"localauthority", "x509", "show"}, {"localauthority", "jwt", "show"}, {"localauthority", "wit", "show"},
		{"x509", "mint", "--spiffe-id", "spiffe://example.org/json"}, {"jwt", "mint", "--spiffe-id", "spiffe://example.org/json", "--audience", "a"}, {"entry", "count"}, {"entry", "export"},
	} {
		var any any
		shared.must(t, &any, args...)
	}
}

func TestStatus(t *testing.T) {
	contains(t, "server status", shared.must(t, nil, "server", "status"), "SERVING", "nodes", "spiffe://example.org/spire/server")
	contains(t, "agent status", shared.must(t, nil, "agent", "status"), shared.NodeID, "following since", "hook")
}
