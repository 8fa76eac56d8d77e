// SPDX-License-Identifier: Apache-2.0

package swtpmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
)

// Pretender signs quotes without a TPM, by a key whose public part looks like an attestation key.
// It serves to load a server with more machines than TPMs can be run; what an attestation would
// find out about it is not its concern.
type Pretender struct {
	// AK is the key's TPMT_PUBLIC.
	AK    []byte
	key   *ecdsa.PrivateKey
	name  []byte
	began time.Time
}

// NewPretender makes a key.
func NewPretender(t testing.TB) *Pretender {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := func(b []byte) tpm2.TPM2BECCParameter { return tpm2.TPM2BECCParameter{Buffer: b} }
	uncompressed, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public := tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true, Restricted: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: point(uncompressed[1:33]), Y: point(uncompressed[33:])}),
	})
	name := tpmName(public)
	return &Pretender{AK: public, key: key, began: time.Now(), name: tpmName(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), name...))}
}

// tpmName is a Name with SHA-256 (TPM 2.0 Part 1, 16).
func tpmName(of []byte) []byte {
	digest := sha256.Sum256(of)
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
}

// Requote answers a question; the PCRs are zero.
func (p *Pretender) Requote(t testing.TB, q tpm.Question, spki, binding []byte) tpm.Answer {
	t.Helper()
	h := sha256.New()
	values := map[int][]byte{}
	ns := make([]uint, len(q.PCRs))
	for i, n := range q.PCRs {
		ns[i], values[n] = uint(n), make([]byte, sha256.Size)
		h.Write(values[n])
	}
	attest := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, QualifiedSigner: tpm2.TPM2BName{Buffer: p.name},
		ExtraData: tpm2.TPM2BData{Buffer: tpm.RequoteData(q.Nonce, spki, binding, tpm.History{})},
		ClockInfo: tpm2.TPMSClockInfo{Clock: uint64(time.Since(p.began).Milliseconds()), ResetCount: 1, Safe: true},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(ns...)}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	})
	digest := sha256.Sum256(attest)
	r, s, err := ecdsa.Sign(rand.Reader, p.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.Bytes()},
	})})
	return tpm.Answer{Quoted: tpm.Quoted{Quote: attest, QuoteSignature: signature, PCRValues: values}}
}
