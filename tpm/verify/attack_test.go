// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// Attackers here own a machine with a real (software) TPM and send it any command they like.

// object is a key that the attacker holds in the TPM.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte
}

func (o object) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.handle, Name: o.name, Auth: tpm2.PasswordAuth(nil)}
}

func (n *node) create(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) object {
	n.t.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(n.raw)
	n.ok(err)
	return object{r.ObjectHandle, r.Name, r.OutPublic.Bytes()}
}

func (n *node) flush(o object) {
	n.t.Helper()
	_, err := tpm2.FlushContext{FlushHandle: o.handle}.Execute(n.raw)
	n.ok(err)
}

func (n *node) template(public []byte) tpm2.TPMTPublic {
	n.t.Helper()
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	n.ok(err)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return *p
}

func (n *node) activate(ak object, c tpm.Challenge) ([]byte, error) {
	n.t.Helper()
	ek := n.create(tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate)
	defer n.flush(ek)
	s, done, err := tpm2.PolicySession(n.raw, tpm2.TPMAlgSHA256, 16)
	n.ok(err)
	defer done()
	_, err = tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, PolicySession: s.Handle(), NonceTPM: s.NonceTPM()}.Execute(n.raw)
	n.ok(err)
	r, err := tpm2.ActivateCredential{ActivateHandle: ak.auth(), KeyHandle: tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: s},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.CredentialBlob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.EncryptedSecret}}.Execute(n.raw)
	if err != nil {
		return nil, err
	}
	return r.CertInfo.Buffer, nil
}

func (n *node) certify(e *tpm.Evidence, ak, key object, q []byte) {
	n.t.Helper()
	r, err := tpm2.Certify{ObjectHandle: key.auth(), SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: q}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(n.raw)
	n.ok(err)
	e.Certify, e.CertifySignature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
}

func (n *node) quote(e *tpm.Evidence, ak object, q []byte, pcrs []int) {
	n.t.Helper()
	r, err := tpm2.Quote{SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: q}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap(pcrs)}}}}.Execute(n.raw)
	n.ok(err)
	e.Quote, e.QuoteSignature = r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
}

func (n *node) spki(public []byte) []byte {
	n.t.Helper()
	p, err := parsePublic(public)
	n.ok(err)
	spki, err := x509.MarshalPKIXPublicKey(p.Key)
	n.ok(err)
	return spki
}

// TestUnrestrictedKeyForgesQuotes: an ordinary TPM key signs a forged TPMS_ATTEST that only
// the attribute check can tell from a true one; and the lie about the attribute changes the
// key's name, so that the credential can not be activated.
func TestUnrestrictedKeyForgesQuotes(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	e := n.answer(c)
	forger := n.create(tpm2.TPMRHEndorsement, n.template(n.hello.KeyPublic))
	defer n.flush(forger)

	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Quote)
	n.ok(err)
	a.ClockInfo.ResetCount = 4711
	forged := tpm2.Marshal(*a)
	digest := sha256.Sum256(forged)
	r, err := tpm2.Sign{KeyHandle: forger.auth(), Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(n.raw)
	n.ok(err)
	public, err := parsePublic(forger.public)
	n.ok(err)
	if _, err := verifyAttest(public, forged, tpm2.Marshal(r.Signature), tpm2.TPMSTAttestQuote, tpm.QualifyingData(s.nonce, s.spki, binding, s.secret)); err != nil {
		t.Fatalf("the forgery should pass the signature check, else this test shows nothing: %v", err)
	}

	h := n.hello
	h.AKPublic = forger.public
	_, _, err = Begin(n.policy, h, now, rand.Reader)
	refused(t, err, checkAK, "forged attestations")

	lie := n.template(forger.public)
	lie.ObjectAttributes.Restricted = true
	truth, err := tpm2.Unmarshal[tpm2.TPMTPublic](forger.public)
	n.ok(err)
	lie.Unique = truth.Unique
	h.AKPublic = tpm2.Marshal(lie)
	s, c = n.begin(h)
	if _, err := n.activate(forger, c); err == nil {
		t.Fatal("the TPM activated a credential for a key with other attributes")
	}
	e.Secret = make([]byte, tpm.SecretSize)
	_, err = s.Finish(proof(e, n.key.Public()), now)
	refused(t, err, checkCredential, "does not live beside it")
}

// TestAttestationKeyOfAnotherTPM: the machine with the good EK has a helper with a TPM of its
// own choosing, whose PCRs look better.
func TestAttestationKeyOfAnotherTPM(t *testing.T) {
	n, helper := newNode(t, swtpmtest.New(t)), newNode(t, swtpmtest.Other(t))
	h := helper.hello
	h.EKCertificates, h.EKPublic = n.hello.EKCertificates, n.hello.EKPublic
	s, c := n.begin(h)
	if _, err := n.device.Answer(n.key, c, binding); err == nil {
		t.Fatal("the TPM activated a credential for an attestation key that it has not")
	}
	_, own := helper.begin(helper.hello)
	e := helper.answer(own)
	_, err := s.Finish(proof(e, helper.key.Public()), now)
	refused(t, err, checkCredential, "does not live beside it")
}

// TestSoftwareKey: the agent's key is in software but claims to be in the TPM; everything else
// is true, and the TPM certifies another key with the right qualifying data.
func TestSoftwareKey(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	n.ok(err)
	point, err := software.PublicKey.Bytes()
	n.ok(err)
	claim := n.template(n.hello.KeyPublic)
	claim.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	h := n.hello
	h.KeyPublic = tpm2.Marshal(claim)
	s, c := n.begin(h)
	e := n.answer(c) // the secret and the PCR values are right
	q := tpm.QualifyingData(c.Nonce, n.spki(h.KeyPublic), binding, e.Secret)
	ak := n.create(tpm2.TPMRHEndorsement, n.akTemplate())
	defer n.flush(ak)
	key := n.create(tpm2.TPMRHEndorsement, n.template(n.hello.KeyPublic))
	n.certify(&e, ak, key, q)
	n.flush(key)
	n.quote(&e, ak, q, c.PCRs)
	_, err = s.Finish(proof(e, software.Public()), now)
	refused(t, err, checkCertify, "another key than the agent's")
}

// akTemplate is device's template of the attestation key, unique included, or the key would differ.
func (n *node) akTemplate() tpm2.TPMTPublic {
	p := n.template(n.hello.AKPublic)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	return p
}

// TestAttestationKeyOfTheOwner: a key of the owner hierarchy passes everything but sees
// obfuscated counters and firmware version.
func TestAttestationKeyOfTheOwner(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	ak := n.create(tpm2.TPMRHOwner, n.akTemplate())
	h := n.hello
	h.AKPublic = ak.public
	s, c := n.begin(h)
	var e tpm.Evidence
	var err error
	e.Secret, err = n.activate(ak, c)
	n.ok(err)
	q := tpm.QualifyingData(c.Nonce, n.spki(h.KeyPublic), binding, e.Secret)
	key := n.create(tpm2.TPMRHEndorsement, n.keyTemplate())
	n.certify(&e, ak, key, q)
	n.flush(key)
	n.quote(&e, ak, q, c.PCRs)
	n.flush(ak)
	_, err = s.Finish(proof(e, n.key.Public()), now)
	refused(t, err, checkHierarchy, "endorsement hierarchy")
}

// TestResetBetweenCertifyAndQuote: the machine boots something else in between, so that what
// was certified and what was measured belong to two boots.
func TestResetBetweenCertifyAndQuote(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	e := n.answer(c)
	n.tpm.Off()
	n.tpm.On()
	ak := n.create(tpm2.TPMRHEndorsement, n.akTemplate())
	defer n.flush(ak)
	n.quote(&e, ak, tpm.QualifyingData(c.Nonce, n.spki(n.hello.KeyPublic), binding, e.Secret), c.PCRs)
	_, err := s.Finish(proof(e, n.key.Public()), now)
	refused(t, err, checkBoot, "reset between")
}

// keyTemplate makes n.key again: newNode's unique bytes.
func (n *node) keyTemplate() tpm2.TPMTPublic {
	p := n.template(n.hello.KeyPublic)
	unique := [32]byte{1}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: unique[:]}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	return p
}

// ca issues EK certificates with any profile.
type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{key, cert}
}

func (c *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

func (c *ca) issue(t *testing.T, public any, alter func(*x509.Certificate)) []byte {
	t.Helper()
	names, err := asn1.Marshal(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidTPMManufacturer, Value: "id:41535359"}, {Type: oidTPMModel, Value: "Model 1"}, {Type: oidTPMVersion, Value: "id:00010002"},
	}}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: names}})
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(77), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate}, ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}}}
	alter(template)
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, public, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEKCertificateProfile(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	authority := newCA(t)
	n.policy = &Policy{EKRoots: authority.pool()}
	ek, err := parsePublic(n.hello.EKPublic)
	n.ok(err)
	with := func(alter func(*x509.Certificate)) tpm.Hello {
		h := n.hello
		h.EKCertificates = [][]byte{authority.issue(t, ek.Key, alter)}
		return h
	}
	s, _ := n.begin(with(func(*x509.Certificate) {}))
	if f := s.progress.Facts; f.Manufacturer != "id:41535359" || f.Model != "Model 1" || f.Version != "id:00010002" {
		t.Errorf("facts %+v", f)
	}
	_, _, err = Begin(n.policy, with(func(*x509.Certificate) {}), now.Add(2*time.Hour), rand.Reader)
	refused(t, err, checkEKCert, "expired")
	for _, c := range []struct {
		name, text string
		alter      func(*x509.Certificate)
	}{
		{"no EKU", "tcg-kp-EKCertificate", func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }},
		{"other EKU", "tcg-kp-EKCertificate", func(c *x509.Certificate) { c.UnknownExtKeyUsage[0] = asn1.ObjectIdentifier{2, 23, 133, 8, 3} }},
		{"expired", "expired", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }},
		{"unknown critical extension", "unhandled critical", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}},
		{"CA", "CA certificate", func(c *x509.Certificate) { c.IsCA = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Begin(n.policy, with(c.alter), now, rand.Reader)
			refused(t, err, checkEKCert, c.text)
		})
	}
}

// TestECCEndorsementKey: a TPM whose only certificate is for the ECC EK, padded as makers do.
func TestECCEndorsementKey(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	authority := newCA(t)
	ek := n.create(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
	public, err := parsePublic(ek.public)
	n.ok(err)
	n.flush(ek)
	cert := append(authority.issue(t, public.Key, func(*x509.Certificate) {}), make([]byte, 300)...)
	n.undefine(0x01c00002)
	n.define(0x01c0000a, cert)

	d, err := device.Open(t.Context(), device.Config{Path: n.tpm.Path})
	n.ok(err)
	defer d.Close()
	key, err := d.NewKey([32]byte{5})
	n.ok(err)
	h, err := d.Hello(key)
	n.ok(err)
	s, c, err := Begin(&Policy{EKRoots: authority.pool()}, h, now, rand.Reader)
	n.ok(err)
	e, err := d.Answer(key, c, binding)
	n.ok(err)
	v, err := s.Finish(proof(e, key.Public()), now)
	n.ok(err)
	if v.EKCertificate == nil || v.Facts.Model != "Model 1" {
		t.Errorf("verdict %+v", v)
	}
}

// undefine removes an NV index of the platform, whose authorization is empty in swtpm.
func (n *node) undefine(index tpm2.TPMHandle) {
	n.t.Helper()
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(n.raw)
	n.ok(err)
	_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		NVIndex: tpm2.NamedHandle{Handle: index, Name: p.NVName}}.Execute(n.raw)
	n.ok(err)
}

func (n *node) define(index tpm2.TPMHandle, data []byte) {
	n.t.Helper()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary}})}.Execute(n.raw)
	n.ok(err)
	for off := 0; off < len(data); off += 512 {
		p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(n.raw)
		n.ok(err)
		_, err = tpm2.NVWrite{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: index, Name: p.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[off:min(off+512, len(data))]}, Offset: uint16(off)}.Execute(n.raw)
		n.ok(err)
	}
}

func decodeAll(t *testing.T, data []byte) (out []*x509.Certificate) {
	t.Helper()
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return out
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
}

func TestCertificateKeyReadsOAEP(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := x509.MarshalPKCS1PublicKey(&key.PublicKey)
	spki := func(oid asn1.ObjectIdentifier) *x509.Certificate {
		raw, err := asn1.Marshal(struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
		}{pkix.AlgorithmIdentifier{Algorithm: oid}, asn1.BitString{Bytes: der, BitLength: 8 * len(der)}})
		if err != nil {
			t.Fatal(err)
		}
		return &x509.Certificate{RawSubjectPublicKeyInfo: raw}
	}
	got, err := certificateKey(spki(oidRSAESOAEP))
	if err != nil || !key.PublicKey.Equal(got) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := certificateKey(spki(asn1.ObjectIdentifier{1, 2, 3})); err == nil {
		t.Error("an unknown algorithm was accepted")
	}
}
