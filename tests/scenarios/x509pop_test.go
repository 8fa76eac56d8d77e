// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

// A node joins by a certificate that it has, attests again at each start, and its workloads get
// their identities on evidence as elsewhere.
func TestX509POP(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, data []byte) string {
		var out bytes.Buffer
		if err := pem.Encode(&out, &pem.Block{Type: kind, Bytes: data}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPath, keyPath := write("node.pem", "CERTIFICATE", cert), write("node.key", "PRIVATE KEY", der)

	m := start(t, dev.Options{Server: fmt.Sprintf("x509pop {\n  ca_bundle_path = %q\n}", certPath)})
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	m.SetAgent(fmt.Sprintf("x509pop {\n  certificate_path = %q\n  private_key_path = %q\n}", certPath, keyPath))
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("spiffe://example.org/spire/agent/x509pop/%x", sha1.Sum(cert)); m.NodeID != want {
		t.Errorf("the node is %s, want %s", m.NodeID, want)
	}
	m.create(t, "/w", "--selector", me(t))
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("a workload of a node that joined by certificate: %+v", e)
	}
	serial := m.serial(t)
	if err := m.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if err := m.StartAgent(t.Context()); err != nil {
		t.Fatalf("the second start: %v", err)
	}
	if got := m.serial(t); got == serial {
		t.Error("the node did not attest again at its start")
	}
}
