// SPDX-License-Identifier: Apache-2.0

package structures

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
)

// golden reads a structure that a TPM made.
func golden(f *testing.F, name string) []byte {
	f.Helper()
	data, err := os.ReadFile("../eventlog/testdata/secure/" + name)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// canonical reads a structure by go-tpm, if the bytes come out the same again.
func canonical[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte) (*T, bool) {
	t, err := tpm2.Unmarshal[T, P](data)
	if err != nil || !bytes.Equal(tpm2.Marshal(*t), data) {
		return nil, false
	}
	return t, true
}

// agree demands that both decoders accept or both refuse.
func agree(t *testing.T, err error, theirs bool) (both bool) {
	t.Helper()
	if (err == nil) != theirs {
		t.Fatalf("ours: %v, go-tpm and the drawing: accepted %v", err, theirs)
	}
	return theirs
}

func same(t *testing.T, what string, ours, theirs []byte) {
	t.Helper()
	if !bytes.Equal(ours, theirs) {
		t.Fatalf("%s: ours %x, go-tpm's %x", what, ours, theirs)
	}
}

// FuzzPublic holds ParsePublic against go-tpm: what it accepts, of the kinds that the package draws.
func FuzzPublic(f *testing.F) {
	f.Add(golden(f, "ak.tpmt_public"))
	for _, p := range tpm.EKProfiles {
		f.Add(tpm2.Marshal(p.Template))
	}
	rsa := tpm2.RSASRKTemplate
	rsa.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Exponent: 3, Scheme: tpm2.TPMTRSAScheme{
		Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}})
	f.Add(tpm2.Marshal(rsa))
	for id, curve := range curves {
		f.Add(eccPublic(f, id, curve))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePublic(data)
		theirs, ok := canonical[tpm2.TPMTPublic](data)
		if !agree(t, err, ok && drawn(theirs)) {
			return
		}
		name, err := tpm2.ObjectName(theirs)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "name", p.Name, name.Buffer)
		key, err := tpm2.Pub(*theirs)
		if err != nil || !p.Key.(interface{ Equal(crypto.PublicKey) bool }).Equal(key) {
			t.Fatalf("key: ours %v, go-tpm's %v (%v)", p.Key, key, err)
		}
		scheme, hash := schemeOf(theirs)
		if p.NameAlg != theirs.NameAlg || p.Scheme != scheme || p.SchemeHash != hash {
			t.Fatalf("algorithms: %+v", p)
		}
		o := theirs.ObjectAttributes
		for bit, set := range map[Attributes]bool{FixedTPM: o.FixedTPM, FixedParent: o.FixedParent, SensitiveDataOrigin: o.SensitiveDataOrigin,
			Restricted: o.Restricted, Decrypt: o.Decrypt, Sign: o.SignEncrypt} {
			if p.Attributes.Has(bit) != set {
				t.Fatalf("attribute 0x%x: ours %x, go-tpm's %v", uint32(bit), p.Attributes, set)
			}
		}
		unique := tpm2.TPMUPublicID{}
		switch theirs.Type {
		case tpm2.TPMAlgRSA:
			unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		case tpm2.TPMAlgECC:
			unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		}
		theirs.Unique = unique
		same(t, "template", append(bytes.Clone(p.Template), make([]byte, len(tpm2.Marshal(*theirs))-len(p.Template))...), tpm2.Marshal(*theirs))
	})
}

// eccPublic is the public area of a new key, whose x has a leading zero that is left out.
func eccPublic(f *testing.F, id tpm2.TPMECCCurve, curve elliptic.Curve) []byte {
	for {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			f.Fatal(err)
		}
		if x, y := point[1:1+len(point)/2], point[1+len(point)/2:]; x[0] == 0 {
			return tpm2.Marshal(tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA384,
				Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: id}),
				Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x[1:]}, Y: tpm2.TPM2BECCParameter{Buffer: y}})})
		}
	}
}

// schemeOf returns a key's scheme and its hash, of those that have one and nothing else.
func schemeOf(p *tpm2.TPMTPublic) (scheme, hash tpm2.TPMAlgID) {
	var details tpm2.TPMUAsymScheme
	if r, err := p.Parameters.RSADetail(); err == nil {
		scheme, details = r.Scheme.Scheme, r.Scheme.Details
	}
	if e, err := p.Parameters.ECCDetail(); err == nil {
		scheme, details = e.Scheme.Scheme, e.Scheme.Details
	}
	if s, err := details.RSASSA(); err == nil {
		hash = s.HashAlg
	}
	if s, err := details.RSAPSS(); err == nil {
		hash = s.HashAlg
	}
	if s, err := details.ECDSA(); err == nil {
		hash = s.HashAlg
	}
	return scheme, hash
}

// drawn reports whether a public area is of the kinds that the package draws.
func drawn(p *tpm2.TPMTPublic) bool {
	var symmetric tpm2.TPMAlgID
	if r, err := p.Parameters.RSADetail(); err == nil {
		symmetric = r.Symmetric.Algorithm
	} else if e, err := p.Parameters.ECCDetail(); err == nil {
		if symmetric = e.Symmetric.Algorithm; e.KDF.Scheme != tpm2.TPMAlgNull {
			return false
		}
	} else {
		return false
	}
	key, err := tpm2.Pub(*p)
	if err != nil {
		return false
	}
	if k, ok := key.(*ecdsa.PublicKey); ok {
		u, err := p.Unique.ECC()
		size := (k.Params().BitSize + 7) / 8
		if err != nil || len(u.X.Buffer) > size || len(u.Y.Buffer) > size {
			return false
		}
		if _, err := k.ECDH(); err != nil {
			return false
		}
	}
	if _, err := p.NameAlg.Hash(); err != nil {
		return false
	}
	scheme, _ := schemeOf(p)
	known := map[tpm2.TPMAlgID]bool{tpm2.TPMAlgNull: true, tpm2.TPMAlgRSASSA: true, tpm2.TPMAlgRSAPSS: true, tpm2.TPMAlgECDSA: true}
	return (symmetric == tpm2.TPMAlgNull || symmetric == tpm2.TPMAlgAES) && known[scheme]
}

// FuzzAttest holds ParseAttest against go-tpm: quotes and certifications that a TPM says it made.
func FuzzAttest(f *testing.F) {
	f.Add(golden(f, "quote.attest"))
	f.Add(tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ClockInfo: tpm2.TPMSClockInfo{Safe: true},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: make([]byte, 34)}})}))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseAttest(data)
		theirs, ok := canonical[tpm2.TPMSAttest](data)
		known := ok && theirs.Magic == tpm2.TPMGeneratedValue && (theirs.Type == tpm2.TPMSTAttestQuote || theirs.Type == tpm2.TPMSTAttestCertify)
		if !agree(t, err, known) {
			return
		}
		same(t, "signer", a.QualifiedSigner, theirs.QualifiedSigner.Buffer)
		same(t, "extra data", a.ExtraData, theirs.ExtraData.Buffer)
		if c := theirs.ClockInfo; a.Kind != theirs.Type || a.Firmware != theirs.FirmwareVersion ||
			a.Clock != c.Clock || a.ResetCount != c.ResetCount || a.RestartCount != c.RestartCount || a.Safe != c.Safe {
			t.Fatalf("ours %+v, go-tpm's %+v", a, theirs)
		}
		if q, err := theirs.Attested.Quote(); err == nil {
			same(t, "PCR digest", a.PCRDigest, q.PCRDigest.Buffer)
			if len(a.Selections) != len(q.PCRSelect.PCRSelections) {
				t.Fatalf("%d selections, go-tpm's %d", len(a.Selections), len(q.PCRSelect.PCRSelections))
			}
			for i, s := range q.PCRSelect.PCRSelections {
				if same(t, "selection", a.Selections[i].Bitmap, s.PCRSelect); a.Selections[i].Hash != s.Hash {
					t.Fatalf("bank 0x%x, go-tpm's 0x%x", a.Selections[i].Hash, s.Hash)
				}
			}
		}
		if c, err := theirs.Attested.Certify(); err == nil {
			same(t, "name", a.Name, c.Name.Buffer)
			same(t, "qualified name", a.QualifiedName, c.QualifiedName.Buffer)
		}
	})
}

// FuzzSignature holds ParseSignature against go-tpm: ECDSA and RSASSA.
func FuzzSignature(f *testing.F) {
	f.Add(golden(f, "quote.sig"))
	f.Add(tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
		&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}})}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSignature(data)
		theirs, ok := canonical[tpm2.TPMTSignature](data)
		if !agree(t, err, ok && (theirs.SigAlg == tpm2.TPMAlgECDSA || theirs.SigAlg == tpm2.TPMAlgRSASSA)) {
			return
		}
		if e, err := theirs.Signature.ECDSA(); err == nil && s.Algorithm == tpm2.TPMAlgECDSA {
			same(t, "R", s.R, e.SignatureR.Buffer)
			if same(t, "S", s.S, e.SignatureS.Buffer); s.Hash != e.Hash {
				t.Fatalf("hash 0x%x, go-tpm's 0x%x", s.Hash, e.Hash)
			}
			return
		}
		r, err := theirs.Signature.RSASSA()
		if err != nil || s.Algorithm != tpm2.TPMAlgRSASSA || s.Hash != r.Hash {
			t.Fatalf("ours %+v, go-tpm's %+v (%v)", s, theirs, err)
		}
		same(t, "RSA signature", s.RSA, r.Sig.Buffer)
	})
}
