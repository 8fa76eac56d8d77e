// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// BenchmarkServer compares what a server does for one attestation, and for one re-quote, with the
// signature checks alone that are within: those of the EK certificate's path, of certify and of quote.
func BenchmarkServer(b *testing.B) {
	p := swtpmtest.New(b)
	m := p.Boot("secure")
	logs := device.Logs(m.Logs)
	d, err := device.Open(b.Context(), device.Config{Path: p.Path, Logs: &logs})
	ok(b, err)
	defer d.Close()
	key, err := d.NewKey([32]byte{1})
	ok(b, err)
	hello, err := d.Hello(key)
	ok(b, err)
	policy := &Policy{EKRoots: p.CA}
	s, c, err := Begin(policy, hello, now, rand.Reader)
	ok(b, err)
	e, err := d.Answer(key, c, binding)
	ok(b, err)
	q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize), PCRs: DefaultPCRs, IMAOffset: int64(len(e.IMA))}
	a, err := d.Requote(key, q, binding, tpm.History{})
	ok(b, err)
	cert, err := x509.ParseCertificate(hello.EKCertificates[0])
	ok(b, err)
	ak, err := parsePublic(hello.AKPublic)
	ok(b, err)
	kept, err := ParseAK(hello.AKPublic)
	ok(b, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	ok(b, err)

	b.Run("attestation", func(b *testing.B) {
		for b.Loop() {
			fresh, _, err := Begin(policy, hello, now, rand.Reader)
			ok(b, err)
			fresh.nonce, fresh.secret = s.nonce, s.secret
			_, err = fresh.Finish(proof(e, key.Public()), now)
			ok(b, err)
		}
	})
	b.Run("attestation-bare", func(b *testing.B) {
		for b.Loop() {
			ok(b, verifyPath(cert, nil, policy, now))
			signature(b, ak, e.Certify, e.CertifySignature)
			signature(b, ak, e.Quote, e.QuoteSignature)
			to, err := tpm2.ImportEncapsulationKey(must(parsePublic(hello.EKPublic)))
			ok(b, err)
			_, _, err = tpm2.CreateCredential(rand.Reader, to, ak.name, s.secret)
			ok(b, err)
		}
	})
	b.Run("requote", func(b *testing.B) {
		for b.Loop() {
			_, err := kept.Requote(q, a, spki, binding)
			ok(b, err)
		}
	})
	b.Run("requote-bare", func(b *testing.B) {
		for b.Loop() {
			signature(b, ak, a.Quote, a.QuoteSignature)
		}
	})
}

func must(p *publicArea, err error) *tpm2.TPMTPublic {
	if err != nil {
		panic(err)
	}
	return &p.TPMTPublic
}

func ok(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func signature(b *testing.B, ak *publicArea, attest, sig []byte) {
	b.Helper()
	t, err := tpm2.Unmarshal[tpm2.TPMTSignature](sig)
	ok(b, err)
	s, err := t.Signature.ECDSA()
	ok(b, err)
	digest := sha256.Sum256(attest)
	if !ecdsa.Verify(ak.key.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)) {
		b.Fatal("the signature is wrong")
	}
}
