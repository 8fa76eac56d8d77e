// SPDX-License-Identifier: Apache-2.0

package interop

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
)

// disk is an upstream authority in two files.
type disk struct {
	cert, key string
	serial    *int64
	id        *string
}

func newDisk(t *testing.T) disk {
	t.Helper()
	dir := t.TempDir()
	d := disk{cert: filepath.Join(dir, "ca.pem"), key: filepath.Join(dir, "ca.key"), serial: new(int64), id: new(string)}
	d.replace(t)
	return d
}

// replace writes another authority and returns the key identifier of the one before.
func (d disk) replace(t *testing.T) (before string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(t, err)
	*d.serial++
	point, err := key.PublicKey.Bytes()
	fatal(t, err)
	ski := sha1.Sum(point)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(*d.serial), Subject: pkix.Name{CommonName: fmt.Sprintf("upstream %d", *d.serial)}, SubjectKeyId: ski[:],
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(90 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	fatal(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	fatal(t, err)
	for path, block := range map[string]*pem.Block{d.cert: {Type: "CERTIFICATE", Bytes: der}, d.key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		var out bytes.Buffer
		fatal(t, pem.Encode(&out, block))
		fatal(t, os.WriteFile(path, out.Bytes(), 0o600))
	}
	before, *d.id = *d.id, fmt.Sprintf("%x", ski)
	return before
}

// endpoint is where another trust domain's bundle is served by https_spiffe, and the bundle in two forms.
type endpoint struct {
	id, url, bundle, pem string
	// any holds an authority that names no trust domain.
	any string
}

// farServer starts SPIRE's server of the trust domain far.test.
func farServer(t *testing.T) endpoint {
	t.Helper()
	address := freeAddress(t)
	f := spireServerOf(t, "far.test", fmt.Sprintf(`  federation { bundle_endpoint {
    address = "127.0.0.1"
    port = %s
    profile "https_spiffe" {}
  } }`, port(t, address)), "")
	dir := t.TempDir()
	top := above{f.socket}
	return endpoint{
		id: "spiffe://far.test", url: "https://" + address + "/",
		bundle: write(t, filepath.Join(dir, "far.json"), top.cli(t, "bundle", "show", "-format", "spiffe")),
		any:    newDisk(t).cert,
		pem:    write(t, filepath.Join(dir, "far.pem"), f.bundle),
	}
}
