// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestLoadPolicy(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		n.ok(os.WriteFile(path, data, 0o600))
		return path
	}
	both := write("both.pem", n.tpm.CAPEM) // a root and an intermediate
	p, err := LoadPolicy(both, nil)
	n.ok(err)
	_, _, err = Begin(p, n.hello, now, rand.Reader)
	n.ok(err)

	onlyIssuer := write("issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: decodeAll(t, n.tpm.CAPEM)[0].Raw}))
	p, err = LoadPolicy(onlyIssuer, nil)
	n.ok(err)
	_, _, err = Begin(p, n.hello, now, rand.Reader)
	n.ok(err)

	hash, err := n.device.EKHash()
	n.ok(err)
	p, err = LoadPolicy("", []string{hex.EncodeToString(hash[:])})
	n.ok(err)
	_, _, err = Begin(p, n.hello, now, rand.Reader)
	n.ok(err)

	for _, c := range []struct {
		path   string
		hashes []string
		want   string
	}{
		{"", []string{"abc"}, "64 hexadecimal digits"},
		{filepath.Join(dir, "missing.pem"), nil, "no such file"},
		{write("empty.pem", nil), nil, "no certificate in PEM form"},
		{write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})), nil, "only certificates belong there"},
		{write("bad.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})), nil, "bad.pem"},
	} {
		if _, err := LoadPolicy(c.path, c.hashes); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("LoadPolicy(%q, %q): got %v, want %q", c.path, c.hashes, err, c.want)
		}
	}
}
