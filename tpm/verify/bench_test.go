// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/structures"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// BenchmarkServer compares what a server does for one attestation, and for one re-quote, with the
// cryptography alone that is within, everything parsed before: the signatures of the EK certificate, of certify
// and of quote, and the credential for the EK.
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
	kept, err := ParseAK(hello.AKPublic)
	ok(b, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	ok(b, err)

	ek, err := parsePublic(hello.EKPublic)
	ok(b, err)
	template, _ := ekTemplate(ek)
	certificate := certificateSignature(b, hello.EKCertificates[0], policy)
	certify, quote, requote := signature(b, s.ak, e.Certify, e.CertifySignature), signature(b, s.ak, e.Quote, e.QuoteSignature), signature(b, s.ak, a.Quote, a.QuoteSignature)

	h, evidence, answer := encoded(b, hello), encoded(b, e), encoded(b, a)
	b.Run("attestation", func(b *testing.B) {
		against(b, func() {
			fresh, challenge, err := Begin(policy, decoded[tpm.Hello](b, h), now, rand.Reader)
			ok(b, err)
			encoded(b, challenge)
			fresh.nonce, fresh.secret = s.nonce, s.secret
			_, err = fresh.Finish(proof(decoded[tpm.Evidence](b, evidence), key.Public()), now)
			ok(b, err)
		}, func() {
			if !certificate() || !certify() || !quote() {
				b.Fatal("a signature is wrong")
			}
			_, _, err = ek.MakeCredential(rand.Reader, template, s.ak.Name, s.secret)
			ok(b, err)
		})
	})
	b.Run("requote", func(b *testing.B) {
		against(b, func() {
			encoded(b, q)
			_, err := kept.Requote(q, decoded[tpm.Answer](b, answer), spki, binding)
			ok(b, err)
		}, func() {
			if !requote() {
				b.Fatal("the signature is wrong")
			}
		})
	})
}

// against does all of the work and the bare part of it in turn, and reports the medians.
func against(b *testing.B, all, bare func()) {
	var sides [2][]time.Duration
	for b.Loop() {
		for i, side := range [...]func(){all, bare} {
			began := time.Now()
			side()
			sides[i] = append(sides[i], time.Since(began))
		}
	}
	var median [2]float64
	for i, side := range sides {
		slices.Sort(side)
		median[i] = side[len(side)/2].Seconds()
	}
	b.ReportMetric(median[0]*1e6, "µs-all")
	b.ReportMetric(median[1]*1e6, "µs-bare")
	b.ReportMetric(100*median[1]/median[0], "%bare")
}

func encoded[M tpm.Message](b *testing.B, m M) []byte {
	data, err := tpm.Encode(m)
	ok(b, err)
	return data
}

func decoded[M tpm.Message](b *testing.B, data []byte) M {
	m, err := tpm.Decode[M](data)
	ok(b, err)
	return m
}

func ok(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// signature returns the check of a signature on a TPMS_ATTEST, and nothing else.
func signature(b *testing.B, ak *structures.Public, attest, sig []byte) func() bool {
	parsed, err := structures.ParseSignature(sig)
	ok(b, err)
	r, s := new(big.Int).SetBytes(parsed.R), new(big.Int).SetBytes(parsed.S)
	return func() bool {
		digest := sha256.Sum256(attest)
		return ecdsa.Verify(ak.Key.(*ecdsa.PublicKey), digest[:], r, s)
	}
}

// certificateSignature returns the check of the signatures on an EK certificate's path, and nothing else.
func certificateSignature(b *testing.B, der []byte, p *Policy) func() bool {
	cert, err := x509.ParseCertificate(der)
	ok(b, err)
	cert.UnhandledCriticalExtensions = nil
	chains, err := cert.Verify(x509.VerifyOptions{Roots: p.EKRoots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	ok(b, err)
	chain := chains[0]
	return func() bool {
		for i, parent := range chain[1:] {
			if parent.CheckSignature(chain[i].SignatureAlgorithm, chain[i].RawTBSCertificate, chain[i].Signature) != nil {
				return false
			}
		}
		return true
	}
}
