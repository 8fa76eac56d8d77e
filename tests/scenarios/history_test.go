// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// What an agent delivered is on its disk, the TPM has vouched for it to the server, and so nobody
// can change it later unseen.
func TestHistory(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/w", "--selector", me(t))
	m.startWorkload(t, self).next(t, m)
	restart := func() {
		t.Helper()
		if err := m.StopAgent(); err != nil {
			t.Fatal(err)
		}
		if err := m.StartAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	restart()             // the first quote after it covers the delivery
	quoted := m.quoted(t) // COUNT:HEAD
	dir := filepath.Join(m.Dir, "data/agent")
	verify := func(args ...string) (string, error) {
		out, err := m.assay(t, append([]string{"agent", "history", "verify", "--data-dir", dir}, args...)...)
		return string(out), err
	}
	out, err := verify("--quoted", quoted)
	if err != nil {
		t.Fatalf("the history as it was written: %v", err)
	}
	contains(t, "the history", out, "1 to 1, whole", "all 1 quotes agree", quoted)

	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "deliveries.log")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "the record", string(data), `"spiffe_id":"spiffe://example.org/w"`, `"sha256":"`+digestOf(t, self)+`"`)
	if err := os.WriteFile(path, bytes.Replace(data, []byte("example.org/w"), []byte("example.org/v"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(); err != nil {
		t.Errorf("without a quote, one changed record holds together: %v %s", err, out)
	}
	if out, err := verify("--quoted", quoted); err == nil || !strings.Contains(err.Error(), "the TPM vouched for the head") {
		t.Errorf("a changed record: %v\n%s", err, out)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if out, err := verify("--quoted", quoted); err == nil || !strings.Contains(err.Error(), "the TPM vouched for 1 records, and there are 0") {
		t.Errorf("a removed history: %v\n%s", err, out)
	}
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server to miss the history", func() bool { return m.logs.count("history of deliveries is shorter than its TPM vouched for") > 0 })
	if got := m.quoted(t); got != quoted {
		t.Errorf("the server knew %s, and after the agent came back without it %s", quoted, got)
	}
}

// quoted waits for the longest history that the node's TPM vouched for, as --quoted wants it.
func (m *machine) quoted(t *testing.T) (longest string) {
	t.Helper()
	eventually(t, "a quote of the delivery", func() bool {
		var node struct {
			Vouched []struct {
				Count string
				Head  []byte
			}
		}
		m.must(t, &node, "node", "show", m.NodeID)
		for _, v := range node.Vouched {
			if v.Count != "0" {
				longest = fmt.Sprintf("%s:%s", v.Count, hex.EncodeToString(v.Head))
			}
		}
		return longest != ""
	})
	return longest
}
