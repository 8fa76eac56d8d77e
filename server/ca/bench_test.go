// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/storetest"
)

func benchCA(b *testing.B) *ca.CA {
	b.Helper()
	c, err := ca.Open(b.Context(), ca.Config{Dir: b.TempDir(), TrustDomain: td, Store: storetest.Open(b)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

func benchCSR(b *testing.B) []byte {
	b.Helper()
	k, err := ecdsa.GenerateKey(p256, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		b.Fatal(err)
	}
	return der
}

func readCSR(b *testing.B, der []byte) crypto.PublicKey {
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		b.Fatal(err)
	}
	return csr.PublicKey
}

// BenchmarkX509 compares SignWorkload with the same cryptography in a bare loop.
func BenchmarkX509(b *testing.B) {
	csr, id := benchCSR(b), spiffeid.RequireFromPath(td, "/w")
	b.Run("SignWorkload", func(b *testing.B) {
		c := benchCA(b)
		for b.Loop() {
			if _, err := c.SignWorkload(ca.Request{ID: id, PublicKey: readCSR(b, csr)}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		k, err := ecdsa.GenerateKey(p256, rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		parent := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: make([]byte, 20)}
		for b.Loop() {
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1), Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}}, NotBefore: now, NotAfter: now.Add(time.Hour),
				URIs: []*url.URL{id.URL()}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			}
			if _, err := x509.CreateCertificate(rand.Reader, template, parent, readCSR(b, csr), k); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkJWT compares SignJWT with a bare signature over as many bytes.
func BenchmarkJWT(b *testing.B) {
	req := ca.JWTRequest{ID: spiffeid.RequireFromPath(td, "/w"), Audience: []string{"a"}}
	b.Run("SignJWT", func(b *testing.B) {
		c := benchCA(b)
		for b.Loop() {
			if _, err := c.SignJWT(req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		k, err := ecdsa.GenerateKey(p256, rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		payload := make([]byte, 256)
		for b.Loop() {
			sum := sha256.Sum256(payload)
			if _, err := ecdsa.SignASN1(rand.Reader, k, sum[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
