// SPDX-License-Identifier: Apache-2.0

package structures

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm/octets"
)

// Attributes are a TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
type Attributes uint32

// The attributes that tell where a key may be and what it may do.
const (
	FixedTPM            Attributes = 1 << 1
	FixedParent         Attributes = 1 << 4
	SensitiveDataOrigin Attributes = 1 << 5
	Restricted          Attributes = 1 << 16
	Decrypt             Attributes = 1 << 17
	Sign                Attributes = 1 << 18
)

// Has reports whether all of some attributes are set.
func (a Attributes) Has(some Attributes) bool { return a&some == some }

// Public is the TPMT_PUBLIC of an RSA or ECC key.
type Public struct {
	// Template are its bytes before the unique value: what its maker asked for. Both alias what was read.
	Template []byte
	// Name is what the TPM calls the key: the name algorithm, and the digest of the TPMT_PUBLIC by it.
	Name []byte

	NameAlg    tpm2.TPMAlgID
	Attributes Attributes
	// Scheme is the one that the key is bound to, TPM_ALG_NULL if to none; SchemeHash is its hash.
	Scheme, SchemeHash tpm2.TPMAlgID
	// Key is an *rsa.PublicKey of any size, or an *ecdsa.PublicKey whose point is on its curve.
	Key crypto.PublicKey
}

var errPublic = errors.New("it is not a TPMT_PUBLIC of an RSA or ECC key")

// ParsePublic reads the public area of a key: RSA, or ECC on P-256, P-384 or P-521; named by SHA-1, SHA-256,
// SHA-384 or SHA-512; of an AES parent or none; for RSASSA, RSAPSS, ECDSA or any scheme.
func ParsePublic(data []byte) (*Public, error) {
	r := octets.Big(data)
	p := &Public{}
	unique, err := p.template(&r)
	if err != nil {
		return nil, err
	}
	p.Template = data[:len(data)-len(r.Rest)]
	if p.Key, err = unique(&r); err != nil {
		return nil, err
	}
	if !r.Done() {
		return nil, errPublic
	}
	return p, p.name(data)
}

// template reads what comes before the unique value, and returns who reads that.
func (p *Public) template(r *octets.Reader) (unique func(*octets.Reader) (crypto.PublicKey, error), err error) {
	kind := tpm2.TPMAlgID(r.U16())
	p.NameAlg, p.Attributes = tpm2.TPMAlgID(r.U16()), Attributes(r.U32())
	r.Sized16(maxBuffer) // policy
	if !symmetric(r) || !p.scheme(r) {
		return nil, errPublic
	}
	switch kind {
	case tpm2.TPMAlgRSA:
		r.U16() // key bits: the modulus tells
		exponent := int(r.U32())
		if exponent == 0 {
			exponent = 65537 // TPM 2.0 Part 2, 12.2.3.5
		}
		return func(r *octets.Reader) (crypto.PublicKey, error) {
			return &rsa.PublicKey{E: exponent, N: new(big.Int).SetBytes(r.Sized16(maxBuffer))}, nil
		}, nil
	case tpm2.TPMAlgECC:
		curve := curves[tpm2.TPMECCCurve(r.U16())]
		if kdf := tpm2.TPMAlgID(r.U16()); curve == nil || kdf != tpm2.TPMAlgNull {
			return nil, errPublic
		}
		return func(r *octets.Reader) (crypto.PublicKey, error) { return point(r, curve) }, nil
	}
	return nil, errPublic
}

var curves = map[tpm2.TPMECCCurve]elliptic.Curve{
	tpm2.TPMECCNistP256: elliptic.P256(), tpm2.TPMECCNistP384: elliptic.P384(), tpm2.TPMECCNistP521: elliptic.P521(),
}

// point reads a TPMS_ECC_POINT. TPMs may leave out a coordinate's leading zeros.
func point(r *octets.Reader, curve elliptic.Curve) (crypto.PublicKey, error) {
	x, y, size := r.Sized16(maxBuffer), r.Sized16(maxBuffer), (curve.Params().BitSize+7)/8
	if len(x) > size || len(y) > size {
		return nil, errPublic
	}
	uncompressed := make([]byte, 1+2*size) // SEC 1, 2.3.3
	uncompressed[0] = 4
	copy(uncompressed[1+size-len(x):], x)
	copy(uncompressed[1+2*size-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, uncompressed)
	if err != nil {
		return nil, errors.New("its point is not on the curve")
	}
	return key, nil
}

// symmetric reads a TPMT_SYM_DEF_OBJECT.
func symmetric(r *octets.Reader) bool {
	switch tpm2.TPMAlgID(r.U16()) {
	case tpm2.TPMAlgNull:
		return true
	case tpm2.TPMAlgAES:
		r.Bytes(4) // key bits, mode
		return true
	}
	return false
}

// scheme reads a TPMT_RSA_SCHEME or TPMT_ECC_SCHEME.
func (p *Public) scheme(r *octets.Reader) bool {
	switch p.Scheme = tpm2.TPMAlgID(r.U16()); p.Scheme {
	case tpm2.TPMAlgNull:
		return true
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS, tpm2.TPMAlgECDSA:
		p.SchemeHash = tpm2.TPMAlgID(r.U16())
		return true
	}
	return false
}

func (p *Public) name(data []byte) error {
	hash, err := p.NameAlg.Hash()
	if err != nil || !hash.Available() {
		return fmt.Errorf("its name algorithm 0x%04x is not known", uint16(p.NameAlg))
	}
	h := hash.New()
	h.Write(data)
	p.Name = h.Sum([]byte{byte(p.NameAlg >> 8), byte(p.NameAlg)})
	return nil
}

// maxRSABits bounds an RSA key that signatures are checked with.
const maxRSABits = 8192

// VerifyAttest checks the key's signature on a TPMS_ATTEST, which must be by SHA-256 and, if the key is RSA,
// RSASSA; and reads it then. Only a restricted key's word is worth something: see Attributes.
func (p *Public) VerifyAttest(attest, signature []byte) (*Attest, error) {
	s, err := ParseSignature(signature)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(attest)
	good := false
	switch k := p.Key.(type) {
	case *ecdsa.PublicKey:
		if s.Algorithm != tpm2.TPMAlgECDSA || s.Hash != tpm2.TPMAlgSHA256 {
			return nil, errors.New("the signature is not ECDSA with SHA-256")
		}
		good = ecdsa.Verify(k, digest[:], new(big.Int).SetBytes(s.R), new(big.Int).SetBytes(s.S))
	case *rsa.PublicKey:
		if s.Algorithm != tpm2.TPMAlgRSASSA || s.Hash != tpm2.TPMAlgSHA256 {
			return nil, errors.New("the signature is not RSASSA with SHA-256")
		}
		good = k.N.BitLen() <= maxRSABits && rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], s.RSA) == nil
	}
	if !good {
		return nil, errors.New("the attestation key did not sign it")
	}
	return ParseAttest(attest)
}

// TemplateOf returns what Public.Template is for a key that was made of a template.
func TemplateOf(template tpm2.TPMTPublic) []byte {
	data := tpm2.Marshal(template)
	r := octets.Big(data)
	if _, err := new(Public).template(&r); err != nil || r.Short {
		panic(fmt.Sprintf("a template of ours: %v", err))
	}
	return data[:len(data)-len(r.Rest)]
}

// MakeCredential encrypts a secret so that only the TPM of this endorsement key recovers it, and only if the
// object of that name is loaded there (TPM 2.0 Part 1, 24). The key was made of the template.
func (p *Public) MakeCredential(random io.Reader, template tpm2.TPMTPublic, name, secret []byte) (blob, encrypted []byte, err error) {
	switch k := p.Key.(type) {
	case *rsa.PublicKey:
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PublicKey:
		uncompressed, err := k.Bytes()
		if err != nil {
			return nil, nil, err
		}
		x, y := uncompressed[1:1+len(uncompressed)/2], uncompressed[1+len(uncompressed)/2:]
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y}})
	}
	to, err := tpm2.ImportEncapsulationKey(&template)
	if err != nil {
		return nil, nil, err
	}
	return tpm2.CreateCredential(random, to, name, secret)
}
