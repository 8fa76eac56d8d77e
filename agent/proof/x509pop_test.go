// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/proto/x509pop"
)

func pemFile(t *testing.T, kind string, der ...[]byte) string {
	t.Helper()
	var out bytes.Buffer
	for _, d := range der {
		if err := pem.Encode(&out, &pem.Block{Type: kind, Bytes: d}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := softKey{}.make()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// popOf makes the files of a node with a certificate.
func popOf(t *testing.T, key crypto.Signer) (*X509POP, *x509.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	raw, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &X509POP{CertificatePath: pemFile(t, "CERTIFICATE", cert.Raw, []byte("second")), PrivateKeyPath: pemFile(t, "PRIVATE KEY", der),
		IntermediatesPath: pemFile(t, "CERTIFICATE", []byte("third"), []byte("fourth"))}, cert
}

func TestX509POP(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey, "ecdsa": newKey(t)} {
		t.Run(name, func(t *testing.T) {
			pop, cert := popOf(t, key)
			payload, own, err := pop.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p, err := x509pop.Decode[x509pop.Payload](payload)
			if err != nil || len(p.Certificates) != 4 || !bytes.Equal(p.Certificates[0], cert.Raw) || string(p.Certificates[3]) != "fourth" {
				t.Fatalf("%d certificates, %v", len(p.Certificates), err)
			}
			c, err := x509pop.NewChallenge(cert, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			question, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := pop.Answer(t.Context(), question, nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := x509pop.Decode[x509pop.Response](answer)
			if err == nil {
				err = x509pop.Verify(cert.PublicKey, c, r)
			}
			if err != nil {
				t.Error(err)
			}
			if key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(own.Public()) {
				t.Error("the SVID is for the certificate's key")
			}
		})
	}
}

func TestX509POPFiles(t *testing.T) {
	good, _ := popOf(t, newKey(t))
	other, _ := popOf(t, newKey(t))
	if _, err := good.Load(); err != nil {
		t.Fatal(err)
	}
	for text, x := range map[string]*X509POP{
		"does not match":                 {CertificatePath: good.CertificatePath, PrivateKeyPath: other.PrivateKeyPath},
		"no such file":                   {CertificatePath: good.CertificatePath, PrivateKeyPath: "/nowhere"},
		"holds no PEM":                   {CertificatePath: good.CertificatePath, PrivateKeyPath: good.PrivateKeyPath, IntermediatesPath: good.PrivateKeyPath},
		"intermediates_path: open /none": {CertificatePath: good.CertificatePath, PrivateKeyPath: good.PrivateKeyPath, IntermediatesPath: "/none"},
	} {
		if _, err := x.Load(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, challenge := range []string{"", "{}", `{"rsa_signature":{"nonce":""}}`} {
		if _, _, err := good.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a, err := good.Answer(t.Context(), []byte(challenge), nil); err == nil {
			t.Errorf("%q is answered by %s", challenge, a)
		}
	}
}

func FuzzX509POPAnswer(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"rsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},"ecdsa_signature":null}`))
	f.Add([]byte(`{"rsa_signature":null,"ecdsa_signature":{"nonce":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pop := &X509POP{proof: key}
		answer, err := pop.Answer(t.Context(), data, nil)
		if err != nil {
			return
		}
		c, err := x509pop.Decode[x509pop.Challenge](data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := x509pop.Decode[x509pop.Response](answer)
		if err == nil {
			err = x509pop.Verify(key.Public(), c, r)
		}
		if err != nil {
			t.Errorf("%q is answered by what does not verify: %v", data, err)
		}
	})
}
