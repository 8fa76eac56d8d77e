// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/cmd/dev"
)

// upstreamCA writes a CA of its own into two files.
func upstreamCA(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "upstream"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpstreamReplaced: an operator changes the CA above the server, taints the former one and revokes it; a workload has an
// SVID below the new one before the old one is gone.
func TestUpstreamReplaced(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	upstreamCA(t, cert, key)
	m := start(t, dev.Options{Server: fmt.Sprintf("upstream_authority \"disk\" {\n  cert_file_path = %q\n  key_file_path = %q\n}", cert, key)})
	m.create(t, "/w", "--selector", me(t))
	stream := m.watch(t)
	stream.next(t)
	old := m.authorities(t, "x509").Active.Upstream
	if _, err := m.assay(t, "upstreamauthority", "taint", "--subject-key-id", old); err == nil {
		t.Error("the upstream authority of the active authority was tainted")
	}

	upstreamCA(t, cert, key)
	var prepared struct {
		Authority struct {
			ID string `json:"authority_id"`
		} `json:"prepared_authority"`
	}
	m.must(t, &prepared, "localauthority", "x509", "prepare")
	m.must(t, nil, "localauthority", "x509", "activate", "--authority-id", prepared.Authority.ID)
	if now := m.authorities(t, "x509").Active.Upstream; now == old || now == "" {
		t.Fatalf("the active authority is below %q, before %q", now, old)
	}
	if _, err := m.assay(t, "upstreamauthority", "revoke", "--subject-key-id", old); err == nil {
		t.Error("an upstream authority was revoked without having been tainted")
	}
	m.must(t, nil, "upstreamauthority", "taint", "--subject-key-id", old)
	for {
		x := stream.next(t) // it comes without being asked for
		if hex.EncodeToString(x.DefaultSVID().Certificates[len(x.DefaultSVID().Certificates)-1].AuthorityKeyId) != old {
			break
		}
	}
	m.must(t, nil, "upstreamauthority", "revoke", "--subject-key-id", old)
	roots := m.roots(t)
	if n := len(roots.X509Authorities()); n != 1 {
		t.Errorf("%d roots are left, want one", n)
	}
	if _, _, err := x509svid.Verify(m.svid(t).Certificates, roots); err != nil {
		t.Error(err)
	}
}
