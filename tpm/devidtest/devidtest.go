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
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

// DevID is what an operator provisions a node with.
type DevID struct {
	// Public and Private are a key's blobs, without TPM2B sizes, as SPIRE's agent reads them.
	Public, Private []byte
	// Leaf is the DevID certificate, CA has issued it.
	Leaf, CA *x509.Certificate
}

// UnderLockout makes wrong passwords of a key count.
func UnderLockout(key *tpm2.TPMTPublic) { key.ObjectAttributes.NoDA = false }

// Provision makes a DevID key (RSA, or ECC) below the TPM's storage root key, and a certificate for it.
func Provision(t testing.TB, p *swtpmtest.TPM, ecc bool, password string, options ...func(*tpm2.TPMTPublic)) *DevID {
	t.Helper()
	a := connect(t, p)
	key := rsaKey(false)
	if ecc {
		key = eccKey()
	}
	for _, o := range options {
		o(&key)
	}
	parent := a.primary(tpm2.TPMRHOwner, storage(ecc))
	defer a.flush(parent)
	r, err := tpm2.Create{
		ParentHandle: parent.auth(), InPublic: tpm2.New2B(key),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}}},
	}.Execute(a.tpm)
	check(t, err)
	d := &DevID{Public: r.OutPublic.Bytes(), Private: r.OutPrivate.Buffer}
	public, err := r.OutPublic.Contents()
	check(t, err)
	d.certify(t, public)
	return d
}

// Files are paths of a DevID on a disk; the certificates are PEM.
type Files struct{ Certificate, CA, Public, Private string }

// Write writes the files.
func (d *DevID) Write(t testing.TB, dir string) Files {
	t.Helper()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, data, 0o600))
		return path
	}
	encode := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return Files{write("devid.pem", encode(d.Leaf)), write("devid-ca.pem", encode(d.CA)), write("devid.pub", d.Public), write("devid.priv", d.Private)}
}

// Agent is a node with a DevID.
type Agent struct {
	*DevID
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

// New provisions a DevID (RSA, or ECC) and loads it, with EK and AK, for the time of the test.
func New(t testing.TB, p *swtpmtest.TPM, ecc bool) *Agent {
	t.Helper()
	d := Provision(t, p, ecc, "")
	a := connect(t, p)
	a.DevID = d
	t.Cleanup(func() {
		for _, h := range []primary{a.ek, a.ak, a.devid} {
			a.flush(h)
		}
	})
	a.devid = a.load(ecc)
	a.ek = a.primary(tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate)
	a.ak = a.primary(tpm2.TPMRHOwner, rsaKey(true))
	attest, signature := a.certify()
	a.Payload = map[string]any{
		"DevIDCert": [][]byte{a.Leaf.Raw}, "DevIDPub": a.Public, "EKCert": a.ekCertificate(), "EKPub": tpm2.Marshal(a.ek.public),
		"AKPub": tpm2.Marshal(a.ak.public), "CertifiedDevID": attest, "CertificationSignature": signature,
	}
	return a
}

func connect(t testing.TB, p *swtpmtest.TPM) *Agent {
	t.Helper()
	conn, err := linuxudstpm.Open(strings.TrimPrefix(p.Path, "unix:"))
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	return &Agent{t: t, tpm: conn}
}

// load puts the DevID key into the TPM.
func (a *Agent) load(ecc bool) primary {
	a.t.Helper()
	parent := a.primary(tpm2.TPMRHOwner, storage(ecc))
	defer a.flush(parent)
	r, err := tpm2.Load{ParentHandle: parent.auth(), InPrivate: tpm2.TPM2BPrivate{Buffer: a.Private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](a.Public)}.Execute(a.tpm)
	check(a.t, err)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](a.Public)
	check(a.t, err)
	return primary{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, *public}
}

// storage is the template of the storage root key that SPIRE's agent takes for a DevID key of this kind.
func storage(ecc bool) tpm2.TPMTPublic {
	template := tpm2.RSASRKTemplate
	if ecc {
		template = tpm2.ECCSRKTemplate
	}
	template.Unique = tpm2.TPMUPublicID{}
	return template
}

func (a *Agent) flush(p primary) {
	a.t.Helper()
	_, err := tpm2.FlushContext{FlushHandle: p.Handle}.Execute(a.tpm)
	check(a.t, err)
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

// certify has a CA of its own certify the key.
func (d *DevID) certify(t testing.TB, key *tpm2.TPMTPublic) {
	t.Helper()
	public, err := tpm2.Pub(*key)
	check(t, err)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	issue := func(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, caKey)
		check(t, err)
		cert, err := x509.ParseCertificate(der)
		check(t, err)
		return cert
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devid ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	d.CA = issue(ca, ca, caKey.Public())
	d.Leaf = issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}}, d.CA, public)
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
