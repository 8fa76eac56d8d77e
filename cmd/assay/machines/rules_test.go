// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/assay/debian"
	"github.com/assay-id/assay/tpm/ima"
)

// TestReadPolicy: what is wrong in a file of rules is told with its line.
func TestReadPolicy(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := write("web.sha256", strings.Repeat("0", 64)+"  /bin/x\n")
	path := write("good.hcl", "node_group \"web\" {\n  secure_boot = true\n  ima_allow = [\""+list+"\"]\n}\n")
	groups, err := readPolicy(path)
	if err != nil || len(groups) != 1 || string(groups[0].Config) != `{"name":"web","secure_boot":true,"ima_allow":["`+list+`"]}` || len(groups[0].Files[list]) != 73 {
		t.Errorf("%v, %v", groups, err)
	}
	for text, want := range map[string]string{
		"node_group \"web\" {\n  secure_bot = true\n}\n":                            "2,3: unknown key \"secure_bot\"; did you mean \"secure_boot\"?",
		"node_group \"web\" {\n}\nnode_group \"db\" {\n\n  kernels = [\"12\"]\n}\n": "5,3: node_group \"db\": kernels: \"12\" is not a SHA-256",
		"node_group \"web\" {\n  ima_allow = [\"/none/x\"]\n}\n":                    "2,3: node_group \"web\": ima_allow: open /none/x",
		"node_group \"web\" {\n  golden = \"" + list + "\"\n}\n":                    "2,3: node_group \"web\": golden: " + list,
		"trust_domain = \"x\"\n":                                                    "1,1: unknown key \"trust_domain\"",
		"":                                                                          "has no block node_group",
	} {
		bad := write("bad.hcl", text)
		if _, err := readPolicy(bad); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), bad) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

// TestTold: a list that lacks files says so, and fails unless people are meant to edit them.
func TestTold(t *testing.T) {
	var out strings.Builder
	l := debian.Learner{List: &ima.AllowList{}, Changed: []string{"/etc/x"}, Edited: []string{"/etc/x"}, Without: []string{"bare"}}
	if err := told(&out, &l); err != nil || !strings.Contains(out.String(), `"/etc/x", a configuration file`) || !strings.Contains(out.String(), "package bare") {
		t.Errorf("%v\n%s", err, &out)
	}
	l.Changed = append(l.Changed, "/bin/x")
	if err := told(&out, &l); err == nil || !strings.HasPrefix(err.Error(), "1 files were changed") || !strings.Contains(out.String(), `"/bin/x", not as`) {
		t.Errorf("%v\n%s", err, &out)
	}
}
