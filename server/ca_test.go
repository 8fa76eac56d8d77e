// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/keys/softhsmtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func (e *env) roots() (roots []string) {
	e.t.Helper()
	b, err := e.admin.bundle.GetBundle(e.t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	for _, a := range b.X509Authorities {
		roots = append(roots, string(a.Asn1))
	}
	return roots
}

// TestKeyManagers: with keys in a TPM, in an HSM or on disk a restart keeps the authorities, and with keys in
// memory it adds others; agents are admitted all the same.
func TestKeyManagers(t *testing.T) {
	tpm, hsm := swtpmtest.New(t), hsmConfig(t, softhsmtest.New(t))
	for name, test := range map[string]struct {
		conf  server.KeyManagerConfig
		roots int
	}{"disk": {server.KeyManagerConfig{Type: "disk"}, 1}, "memory": {server.KeyManagerConfig{Type: "memory"}, 2}, "tpm": {server.KeyManagerConfig{Type: "tpm", Path: tpm.Path}, 1}, "pkcs11": {hsm, 1}} {
		e := start(t, func(c *server.Config) { c.KeyManager = &test.conf })
		before := e.roots()
		e.newAgent()
		e.stop()
		e = run(t, e.conf)
		if after := e.roots(); len(after) != test.roots || after[0] != before[0] {
			t.Errorf("%s: %d roots after a restart, want %d", name, len(after), test.roots)
		}
		e.newAgent()
		e.stop()
		files, err := os.ReadDir(filepath.Join(e.conf.DataDir, "ca"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			data, err := os.ReadFile(filepath.Join(e.conf.DataDir, "ca", f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if name != "disk" && strings.Contains(string(data), "PRIVATE KEY") {
				t.Errorf("%s: %s holds a private key", name, f.Name())
			}
		}
	}
}

// TestServersOwnSVIDBelowAnUpstream: the server shows its whole chain, or nobody could connect.
func TestServersOwnSVIDBelowAnUpstream(t *testing.T) {
	ca := start(t, nil) // whose key and root serve as files
	dir := filepath.Join(ca.conf.DataDir, "ca")
	keys, err := filepath.Glob(filepath.Join(dir, "x509-*.pem"))
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	cert := filepath.Join(t.TempDir(), "root.pem")
	root, err := x509.ParseCertificate([]byte(ca.roots()[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, func(c *server.Config) {
		c.UpstreamAuthority = &server.UpstreamConfig{Type: "disk", CertFilePath: cert, KeyFilePath: keys[0]}
	})
	if roots := e.roots(); len(roots) != 1 || roots[0] != string(root.Raw) {
		t.Errorf("%d roots, want the upstream's", len(roots))
	}
	a := e.newAgent() // verifies the server by the root
	if len(a.cert.Certificate) != 2 {
		t.Errorf("the agent has a chain of %d, want its SVID and the server's CA", len(a.cert.Certificate))
	}
}
