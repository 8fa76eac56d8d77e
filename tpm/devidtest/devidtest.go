// SPDX-License-Identifier: Apache-2.0

// Package devidtest plays SPIRE's agent with its tpm_devid plugin on a software TPM. The messages
// are written out by hand, as SPIRE's documentation and research/spire-wire.md 2.4 describe them:
// nothing of tpm/devid is used. Only tests import it.
package devidtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

// Agent is a node with a DevID.
type Agent struct {
	// Leaf is the DevID certificate, CA has issued it.
	Leaf, CA *x509.Certificate
	// Payload may be altered before it is encoded.
	Payload map[string]any

	t             testing.TB
	tpm           transport.TPM
	ek, ak, devid primary
}

type primary struct {
	tpm2.NamedHandle
	public tpm2.TPMTPublic
}

// New makes EK, AK and a DevID key (RSA, or ECC) in the TPM, and a certificate for the latter.
func New(t testing.TB, p *swtpmtest.TPM, ecc bool) *Agent {
	t.Helper()
	conn, err := linuxudstpm.Open(strings.TrimPrefix(p.Path, "unix:"))
	check(t, err)
	a := &Agent{t: t, tpm: conn}
	t.Cleanup(func() {
		for _, h := range []primary{a.ek, a.ak, a.devid} {
			_, err := tpm2.FlushContext{FlushHandle: h.Handle}.Execute(a.tpm)
			check(t, err)
		}
		check(t, conn.Close())
	})
	a.ek = a.primary(tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate)
	a.ak = a.primary(tpm2.TPMRHOwner, rsaKey(true))
	key := rsaKey(false)
	if ecc {
		key = eccKey()
	}
	a.devid = a.primary(tpm2.TPMRHOwner, key)
	a.certificates()
	attest, signature := a.certify()
	a.Payload = map[string]any{
		"DevIDCert": [][]byte{a.Leaf.Raw}, "DevIDPub": tpm2.Marshal(a.devid.public), "EKCert": a.ekCertificate(), "EKPub": tpm2.Marshal(a.ek.public),
		"AKPub": tpm2.Marshal(a.ak.public), "CertifiedDevID": attest, "CertificationSignature": signature,
	}
	return a
}

// Open returns the encoded Payload.
func (a *Agent) Open() []byte {
	data, err := json.Marshal(a.Payload)
	check(a.t, err)
	return data
}

// Answer answers an encoded challenge.
func (a *Agent) Answer(challenge []byte) []byte {
	a.t.Helper()
	var c struct {
		DevID          []byte
		CredActivation *struct{ Credential, Secret []byte }
	}
	check(a.t, json.Unmarshal(challenge, &c))
	if c.CredActivation == nil {
		a.t.Fatalf("SPIRE's agent would fail: no CredActivation in %s", challenge)
	}
	data, err := json.Marshal(map[string]any{"DevID": a.sign(c.DevID), "CredActivation": a.activate(c.CredActivation.Credential, c.CredActivation.Secret)})
	check(a.t, err)
	return data
}

func (a *Agent) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) primary {
	a.t.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(template)}.Execute(a.tpm)
	check(a.t, err)
	public, err := r.OutPublic.Contents()
	check(a.t, err)
	return primary{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, *public}
}

func (p primary) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: p.Handle, Name: p.Name, Auth: tpm2.PasswordAuth(nil)}
}

func attributes(restricted bool) tpm2.TPMAObject {
	return tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: restricted, SignEncrypt: true}
}

func rsaKey(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes(restricted),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Scheme: rsassa(), KeyBits: 2048}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}),
	}
}

func rsassa() tpm2.TPMTRSAScheme {
	return tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}
}

func eccKey() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes(false),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
	}
}

func (a *Agent) certificates() {
	a.t.Helper()
	public, err := tpm2.Pub(a.devid.public)
	check(a.t, err)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	issue := func(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, caKey)
		check(a.t, err)
		cert, err := x509.ParseCertificate(der)
		check(a.t, err)
		return cert
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devid ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.CA = issue(ca, ca, caKey.Public())
	a.Leaf = issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}}, a.CA, public)
}

func (a *Agent) certify() (attest, signature []byte) {
	a.t.Helper()
	scheme := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})}
	r, err := tpm2.Certify{ObjectHandle: a.devid.auth(), SignHandle: a.ak.auth(), InScheme: scheme}.Execute(a.tpm)
	check(a.t, err)
	return r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
}

// sign makes what crypto/x509 calls a signature: PKCS#1 v1.5, or ASN.1.
func (a *Agent) sign(message []byte) []byte {
	a.t.Helper()
	digest := sha256.Sum256(message)
	r, err := tpm2.Sign{
		KeyHandle: a.devid.auth(), Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(a.tpm)
	check(a.t, err)
	if s, err := r.Signature.Signature.RSASSA(); err == nil {
		return s.Sig.Buffer
	}
	s, err := r.Signature.Signature.ECDSA()
	check(a.t, err)
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)})
	check(a.t, err)
	return der
}

func (a *Agent) activate(credential, secret []byte) []byte {
	a.t.Helper()
	policy, end, err := tpm2.PolicySession(a.tpm, tpm2.TPMAlgSHA256, 16)
	check(a.t, err)
	defer func() { check(a.t, end()) }()
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: policy.Handle(), NonceTPM: policy.NonceTPM(),
	}.Execute(a.tpm)
	check(a.t, err)
	r, err := tpm2.ActivateCredential{
		ActivateHandle: a.ak.auth(),
		KeyHandle:      tpm2.AuthHandle{Handle: a.ek.Handle, Name: a.ek.Name, Auth: policy},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(a.tpm)
	check(a.t, err)
	return r.CertInfo.Buffer
}

// ekCertificate reads NV 0x01c00002 and leaves the padding out.
func (a *Agent) ekCertificate() []byte {
	a.t.Helper()
	const index = tpm2.TPMHandle(0x01c00002)
	info, err := tpm2.NVReadPublic{NVIndex: index}.Execute(a.tpm)
	check(a.t, err)
	public, err := info.NVPublic.Contents()
	check(a.t, err)
	var data []byte
	for len(data) < int(public.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: info.NVName},
			Size: uint16(min(512, int(public.DataSize)-len(data))), Offset: uint16(len(data)),
		}.Execute(a.tpm)
		check(a.t, err)
		data = append(data, r.Data.Buffer...)
	}
	var outer asn1.RawValue
	_, err = asn1.Unmarshal(data, &outer)
	check(a.t, err)
	return outer.FullBytes
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
