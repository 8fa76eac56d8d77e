// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// TestEKs: the templates give the keys that the certificates are for, and they activate credentials.
func TestEKs(t *testing.T) {
	p := swtpmtest.New(t)
	hashes := map[[32]byte]string{}
	for _, kind := range []string{"rsa2048", "ecc256", "ecc384"} {
		d, err := Open(t.Context(), Config{Path: p.Path, EK: kind})
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t, d, 1)
		hello, err := d.Hello(key)
		if err != nil {
			t.Fatal(err)
		}
		secret := bytes.Repeat([]byte{7}, tpm.SecretSize)
		e, err := d.Answer(key, challenge(t, hello, secret), binding)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if !bytes.Equal(e.Secret, secret) {
			t.Errorf("%s: another secret came back", kind)
		}
		noHandles(t, d, kind)
		// swtpm_setup certifies these two; for ECC P-256 there is none.
		if kind != "ecc256" {
			cert, err := x509.ParseCertificate(hello.EKCertificates[0])
			if err != nil {
				t.Fatal(err)
			}
			ek, err := publicKey(hello.EKPublic)
			if err != nil {
				t.Fatal(err)
			}
			if !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(ek) {
				t.Errorf("%s: the certificate is for another key", kind)
			}
		} else if len(hello.EKCertificates) != 0 {
			t.Errorf("%s: a certificate", kind)
		}
		hash, err := d.EKHash()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := hashes[hash]; ok {
			t.Errorf("%s and %s are one key", kind, other)
		}
		hashes[hash] = kind
		d.Close()
	}
}
