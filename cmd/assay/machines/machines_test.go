// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

// TestOnNode: what an operator runs on the machine itself.
func TestOnNode(t *testing.T) {
	p := swtpmtest.New(t)
	assay := func(args ...string) (string, error) {
		var out bytes.Buffer
		shared, c := cli.New("assay", "")
		c.AddCommand(Commands(shared)...)
		c.SetArgs(args)
		c.SetOut(&out)
		err := c.ExecuteContext(t.Context())
		return out.String(), err
	}
	text, err := assay("tpm", "ek", "--device", p.Path)
	if err != nil || !strings.Contains(text, "issued by") || !strings.Contains(text, "assay tpm inventory add ") {
		t.Errorf("ek: %v\n%s", err, text)
	}
	var report ekReport
	if text, err = assay("tpm", "ek", "--device", p.Path, "-o", "json"); err != nil || json.Unmarshal([]byte(text), &report) != nil || len(report.EKHash) != 64 || len(report.Certificates) == 0 {
		t.Errorf("ek as JSON: %v\n%s", err, text)
	}
	golden := filepath.Join(t.TempDir(), "golden.json")
	if text, err = assay("tpm", "learn", "--device", p.Path, "--golden", golden, "--name", "rack 7"); err != nil {
		t.Fatalf("learn: %v\n%s", err, text)
	}
	data, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	g, err := policy.ParseGolden(data)
	if err != nil || g.Name != "rack 7" || len(g.PCRs) != 16 {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err = assay("tpm", "learn", "--device", p.Path, "--golden", golden, "--ima", golden+".sha256"); err == nil || !strings.Contains(err.Error(), "no IMA log") {
		t.Errorf("learn --ima without a log: %v", err)
	}
	if _, err = assay("tpm", "allowlist", "debian"); err == nil || !strings.Contains(err.Error(), "--installed") {
		t.Errorf("allowlist of nothing: %v", err)
	}
	if _, err = assay("tpm", "allowlist", "debian", "--installed", "--root", t.TempDir()); err == nil || !strings.Contains(err.Error(), "--root") {
		t.Errorf("allowlist of an empty folder: %v", err)
	}
	if _, err = assay("tpm", "ek", "--device", "/nowhere"); err == nil {
		t.Error("ek without a TPM succeeds")
	}
}
