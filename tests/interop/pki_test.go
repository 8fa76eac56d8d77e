// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// files are what a node has of a PKI outside: paths of PEM files.
type files struct {
	root, certificate, key string
	// id is the path of a node's SPIFFE ID that attests by the certificate.
	id string
}

// pki makes a root, an intermediate, and a node's certificate for an RSA or ECDSA key. The file
// of the certificate holds the intermediate, too.
func pki(t *testing.T, rsaKey bool) files {
	t.Helper()
	dir := t.TempDir()
	serial := int64(0x7f)
	issue := func(name string, ca bool, parent *x509.Certificate, key, signer crypto.Signer) *x509.Certificate {
		serial++
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute),
			NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
		if !ca {
			tmpl.KeyUsage = x509.KeyUsageDigitalSignature
		}
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
		fatal(t, err)
		cert, err := x509.ParseCertificate(der)
		fatal(t, err)
		return cert
	}
	ecKey := func() crypto.Signer {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		fatal(t, err)
		return k
	}
	encode := func(kind string, ders ...[]byte) string {
		var out bytes.Buffer
		for _, der := range ders {
			fatal(t, pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}))
		}
		return out.String()
	}
	rootKey, middleKey, key := ecKey(), ecKey(), ecKey()
	if rsaKey {
		var err error
		key, err = rsa.GenerateKey(rand.Reader, 2048)
		fatal(t, err)
	}
	root := issue("root", true, nil, rootKey, rootKey)
	middle := issue("middle", true, root, middleKey, rootKey)
	leaf := issue("node", false, middle, key, middleKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	fatal(t, err)
	return files{
		root:        write(t, filepath.Join(dir, "root.pem"), encode("CERTIFICATE", root.Raw)),
		certificate: write(t, filepath.Join(dir, "node.pem"), encode("CERTIFICATE", leaf.Raw, middle.Raw)),
		key:         write(t, filepath.Join(dir, "node.key"), encode("PRIVATE KEY", der)),
		id:          fmt.Sprintf("/spire/agent/x509pop/%x", sha1.Sum(leaf.Raw)),
	}
}

// machine is a node with a software TPM and a DevID.
type machine struct {
	tpm string // path, for our agent
	// key and roots are the lines about them in the configurations of agents and of servers: SPIRE's
	// and ours have the same keys.
	key, roots string
	id         string
}

// devid makes a machine whose DevID key is RSA or ECC, and has a password.
func devid(t *testing.T, ecc bool) machine {
	t.Helper()
	chip := swtpmtest.New(t)
	made := devidtest.Provision(t, chip, ecc, "a password")
	dir := t.TempDir()
	f := made.Write(t, dir)
	return machine{
		tpm:   chip.Path,
		key:   fmt.Sprintf("  devid_cert_path = %q\n  devid_priv_path = %q\n  devid_pub_path = %q\n  devid_password = \"a password\"\n", f.Certificate, f.Private, f.Public),
		roots: fmt.Sprintf("  devid_ca_path = %q\n  endorsement_ca_path = %q\n", f.CA, write(t, filepath.Join(dir, "ek-ca.pem"), string(chip.CAPEM))),
		id:    fmt.Sprintf("/spire/agent/tpm_devid/%x", sha1.Sum(made.Leaf.Raw)),
	}
}
