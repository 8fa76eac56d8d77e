// SPDX-License-Identifier: Apache-2.0

// Package structures reads the structures that a TPM signs and that name its keys (TPM 2.0 Part 2):
//
//	TPMT_PUBLIC     type u16 │ name algorithm u16 │ attributes u32 │ policy 2B │ parameters │ unique      12.2.4
//	  RSA           symmetric │ scheme │ key bits u16 │ exponent u32             │ modulus 2B             12.2.3.5
//	  ECC           symmetric │ scheme │ curve u16    │ KDF u16 = NULL           │ x 2B │ y 2B            12.2.3.6
//	  symmetric     NULL u16, or algorithm u16 │ key bits u16 │ mode u16                                  11.1.7
//	  scheme        NULL u16, or algorithm u16 │ hash u16                                                 11.2.4, 11.2.5
//	TPMS_ATTEST     magic u32 │ kind u16 │ signer 2B │ extra data 2B │ clock │ firmware u64 │ attested    10.12.12
//	  clock         clock u64 │ reset count u32 │ restart count u32 │ safe u8                             10.11.1
//	  quote         count u32 × (hash u16 │ size u8, bitmap) │ digest 2B                                  10.12.4
//	  certify       name 2B │ qualified name 2B                                                           10.12.3
//	TPMT_SIGNATURE  algorithm u16 │ hash u16 │ ECDSA: r 2B │ s 2B, RSASSA: signature 2B                   11.3.4
//
// Integers are big-endian; 2B is a 16-bit size and so many bytes. What is not drawn here is refused, and so
// is a second spelling: what was read is what was hashed, named or signed, byte for byte.
//
// go-tpm reads all TPM structures by reflection, which costs a server more than the signatures. These are held
// against it: fuzz tests demand that both accept the same bytes, and read the same from them.
package structures

import (
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm/octets"
)

// maxBuffer bounds a 2B, in bytes; as go-tpm does, and more than any TPM's.
const maxBuffer = 4096

var (
	errMagic  = errors.New("a TPM did not make it")
	errKind   = errors.New("it is an attestation of another kind")
	errAttest = errors.New("it is not a TPMS_ATTEST")
)

// Attest is a TPMS_ATTEST of one of two kinds. Its byte strings alias what was read.
type Attest struct {
	// Kind is TPM_ST_ATTEST_QUOTE or TPM_ST_ATTEST_CERTIFY.
	Kind tpm2.TPMST
	// QualifiedSigner names the key that signed, and where it is in its hierarchy.
	QualifiedSigner []byte
	// ExtraData is the qualifying data of who asked.
	ExtraData []byte
	// Clock is in milliseconds of the TPM's time. ResetCount and RestartCount rise with each boot, and with
	// each resume; Safe says that Clock was never higher before.
	Clock                    uint64
	ResetCount, RestartCount uint32
	Safe                     bool
	// Firmware is the version of the TPM's.
	Firmware uint64
	// Selections and PCRDigest are of a quote: which PCRs, and the digest over their values.
	Selections []Selection
	PCRDigest  []byte
	// Name and QualifiedName are of a certification: those of the certified object.
	Name, QualifiedName []byte
}

// Selection names PCRs of one bank: PCR n is bit n%8 of Bitmap[n/8].
type Selection struct {
	Hash   tpm2.TPMAlgID
	Bitmap []byte
}

// ParseAttest reads a quote or a certification.
func ParseAttest(data []byte) (*Attest, error) {
	r := octets.Big(data)
	if r.U32() != uint32(tpm2.TPMGeneratedValue) {
		return nil, errMagic
	}
	a := &Attest{Kind: tpm2.TPMST(r.U16()), QualifiedSigner: r.Sized16(maxBuffer), ExtraData: r.Sized16(maxBuffer),
		Clock: r.U64(), ResetCount: r.U32(), RestartCount: r.U32()}
	safe := r.U8()
	a.Safe, a.Firmware = safe == 1, r.U64()
	switch a.Kind {
	case tpm2.TPMSTAttestQuote:
		for count := r.U32(); count > 0 && !r.Short; count-- {
			a.Selections = append(a.Selections, Selection{tpm2.TPMAlgID(r.U16()), r.Sized8()})
		}
		a.PCRDigest = r.Sized16(maxBuffer)
	case tpm2.TPMSTAttestCertify:
		a.Name, a.QualifiedName = r.Sized16(maxBuffer), r.Sized16(maxBuffer)
	default:
		return nil, errKind
	}
	if !r.Done() || safe > 1 {
		return nil, errAttest
	}
	return a, nil
}

// Signature is a TPMT_SIGNATURE. Its byte strings alias what was read.
type Signature struct {
	// Algorithm is TPM_ALG_ECDSA, with R and S, or TPM_ALG_RSASSA, with RSA.
	Algorithm, Hash tpm2.TPMAlgID
	R, S            []byte
	RSA             []byte
}

// ParseSignature reads a signature.
func ParseSignature(data []byte) (Signature, error) {
	r := octets.Big(data)
	s := Signature{Algorithm: tpm2.TPMAlgID(r.U16()), Hash: tpm2.TPMAlgID(r.U16())}
	switch s.Algorithm {
	case tpm2.TPMAlgECDSA:
		s.R, s.S = r.Sized16(maxBuffer), r.Sized16(maxBuffer)
	case tpm2.TPMAlgRSASSA:
		s.RSA = r.Sized16(maxBuffer)
	default:
		return Signature{}, errors.New("the signature is neither ECDSA nor RSASSA")
	}
	if !r.Done() {
		return Signature{}, errors.New("the signature is malformed")
	}
	return s, nil
}
