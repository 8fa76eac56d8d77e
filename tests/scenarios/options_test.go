// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Two processes of one program have SVIDs of their own, and a third stream of one of them the same.
func TestPerProcess(t *testing.T) {
	shared.create(t, "/own", "--selector", me(t), "--per-process")
	serials := map[string]bool{}
	for range 2 {
		e := shared.startWorkload(t, self).next(t, shared)
		if len(e.Serials) != 1 || serials[e.Serials[0]] {
			t.Fatalf("got %+v, and others had %v", e, serials)
		}
		serials[e.Serials[0]] = true
	}
}

// A program that never asks has its SVID signed when it is executed, because its entry wants that, and for a key of the
// entry's type.
func TestPrefetch(t *testing.T) {
	nativeOnly(t, "a guest has no sleep(1) that can be copied")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "early")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	shared.create(t, "/early", "--selector", "unix:path:"+program, "--prefetch", "--key-type", "rsa-2048")
	signed := func() int {
		n := 0
		for line := range strings.Lines(shared.logs.String()) {
			if strings.Contains(line, "X.509-SVID signed") && strings.Contains(line, "/early") {
				n++
			}
		}
		return n
	}
	cmd := exec.Command(program, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "an SVID to be signed for a program that does not ask", func() bool { return signed() > 0 })
}

// Options survive what says nothing of them, an export and its apply, and one can be changed alone.
func TestEntryOptions(t *testing.T) {
	e := shared.create(t, "/options", "--selector", "unix:uid:4713", "--per-process", "--key-type", "ec-p384", "--grace", "1h")
	type shown struct {
		Hint    string
		Options struct {
			PerProcess bool   `json:"per_process"`
			KeyType    string `json:"key_type"`
			Grace      int
		}
	}
	var got []shown
	shared.must(t, &got, "entry", "update", e.ID, "--hint", "x")
	shared.must(t, &got, "entry", "update", e.ID, "--grace", "5m")
	if o := got[0].Options; got[0].Hint != "x" || !o.PerProcess || o.KeyType != "KEY_TYPE_EC_P384" || o.Grace != 300 {
		t.Errorf("got %+v", got[0])
	}
	exported := shared.must(t, nil, "entry", "export", "--selector", "unix:uid:4713", "--ids")
	contains(t, "the export", exported, "per_process = true", `key_type = "ec-p384"`, `grace = "5m0s"`)
	path := file(t, "entries.hcl", exported)
	contains(t, "the difference", shared.must(t, nil, "entry", "diff", "-f", path), "1 unchanged")
	contains(t, "the difference", shared.must(t, nil, "entry", "diff", "-f", file(t, "entries.hcl", strings.Replace(exported, "per_process = true", "", 1))), `per_process`, `"true" → "false"`)
	if out, err := shared.assay(t, "entry", "update", e.ID, "--prefetch"); err == nil {
		t.Errorf("prefetch of no program: %s", out)
	} else {
		contains(t, "the refusal", err.Error(), "unix:path:")
	}
}
