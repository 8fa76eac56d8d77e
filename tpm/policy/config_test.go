// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestConfigFiles: a group with all that files can say, read from where the files are.
func TestConfigFiles(t *testing.T) {
	secure := snapshot(t, "secure")
	golden, list, err := Learn(secure, "g", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(golden)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	if err := list.Write(&lines); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"g.json": data, "/etc/a.b/web.sha256": []byte(lines.String())}
	read := func(path string) ([]byte, error) {
		if data, ok := files[path]; ok {
			return data, nil
		}
		return nil, fs.ErrNotExist
	}
	c := GroupConfig{Name: "web", Golden: "g.json", DBXOf: []string{"g.json"}, IMAAllow: []string{"/etc/a.b/web.sha256"}, NoViolations: true}
	g, err := c.Group(read)
	if err != nil {
		t.Fatal(err)
	}
	m := machine(t, secure)
	if f := g.Judge(m); len(f) > 0 || len(g.DBXOf) != 1 || g.IMA[0].Name != "web" {
		t.Errorf("the machine itself: %v", f)
	}
	// A machine whose dbx holds nothing does not revoke what the golden one does.
	lax := *m.Boot
	m.Boot, lax.DBX = &lax, machine(t, snapshot(t, "direct")).Boot.DBX
	if f := g.Judge(m); !slices.ContainsFunc(f, func(f Finding) bool { return f.Rule == "dbx" }) {
		t.Errorf("another dbx: %v", f)
	}
	for key, c := range map[string]GroupConfig{
		"golden": {Golden: "none"}, "dbx_of": {DBXOf: []string{"/etc/a.b/web.sha256"}}, "ima_allow": {IMAAllow: []string{"g.json"}}, "kernels": {Kernels: []string{"x"}},
	} {
		var wrong *KeyError
		if _, err := c.Group(read); !errors.As(err, &wrong) || wrong.Key != key {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// TestConfigAsJSON: what is sent to a server is what was read.
func TestConfigAsJSON(t *testing.T) {
	c := GroupConfig{Name: "a", SecureBoot: true, RequirePCRs: []int{1}, Arguments: []string{"quiet"}, FirmwareMin: "0"}
	data, err := json.Marshal(c)
	if err != nil || string(data) != `{"name":"a","require_pcrs":[1],"secure_boot":true,"arguments":["quiet"],"firmware_min":"0"}` {
		t.Errorf("%s, %v", data, err)
	}
}
