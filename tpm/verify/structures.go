// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
)

// parse reads a TPM structure and refuses bytes that do not come out the same again: trailing
// bytes and second spellings have no place in what we hash, name or compare.
func parse[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte) (*T, error) {
	t, err := tpm2.Unmarshal[T, P](data)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*t), data) {
		return nil, errors.New("not in canonical form")
	}
	return t, nil
}

// publicArea is a TPMT_PUBLIC with its Name and key.
type publicArea struct {
	tpm2.TPMTPublic
	name []byte
	key  crypto.PublicKey
}

func parsePublic(data []byte) (*publicArea, error) {
	p, err := parse[tpm2.TPMTPublic](data)
	if err != nil {
		return nil, err
	}
	if p.NameAlg != tpm2.TPMAlgSHA256 && p.NameAlg != tpm2.TPMAlgSHA384 {
		return nil, errors.New("its name algorithm is not SHA-256 or SHA-384")
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	key, err := tpm2.Pub(*p)
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, errors.New("its curve is not P-256 or P-384")
		}
		if _, err := k.ECDH(); err != nil {
			return nil, errors.New("its point is not on the curve")
		}
	case *rsa.PublicKey:
		if k.N.BitLen() != 2048 || k.N.Bit(0) == 0 || k.E != 65537 {
			return nil, errors.New("it is not a 2048-bit RSA key with exponent 65537")
		}
	}
	return &publicArea{*p, name.Buffer, key}, nil
}

// isProfileEK reports whether the public area is an endorsement key of the TCG EK Credential Profile
// that we know, its unique value aside.
func (p *publicArea) isProfileEK() bool {
	for _, profile := range tpm.EKProfiles {
		template := profile.Template
		if template.Type == p.Type {
			template.Unique = p.Unique
			if bytes.Equal(tpm2.Marshal(template), tpm2.Marshal(p.TPMTPublic)) {
				return true
			}
		}
	}
	return false
}

// checkSigningKey checks that a key can sign with ECDSA P-256 and SHA-256 only, was made in its TPM and can
// not leave it. A restricted key signs nothing that only looks like an attestation: without
// this check an ordinary TPM key can forge quotes.
func (p *publicArea) checkSigningKey(restricted bool) error {
	a := p.ObjectAttributes
	public, isECC := p.key.(*ecdsa.PublicKey)
	switch {
	case !isECC:
		return errors.New("it is not an ECC key")
	case public.Curve != elliptic.P256() || p.NameAlg != tpm2.TPMAlgSHA256:
		return errors.New("it is not a P-256 key with SHA-256 as its name algorithm")
	case !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin:
		return errors.New("it may exist outside of the TPM (fixedTPM, fixedParent and sensitiveDataOrigin must be set)")
	case !a.SignEncrypt || a.Decrypt:
		return errors.New("it is not a key for signing only")
	case restricted && !a.Restricted:
		return errors.New("it is not restricted, so it could sign forged attestations")
	case !restricted && a.Restricted:
		return errors.New("it is restricted, so it could not sign a TLS handshake")
	}
	parameters, err := p.Parameters.ECCDetail()
	if err != nil {
		return err
	}
	if parameters.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return errors.New("its scheme is not ECDSA")
	}
	scheme, err := parameters.Scheme.Details.ECDSA()
	if err != nil {
		return err
	}
	if scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return errors.New("its scheme's hash is not SHA-256")
	}
	return nil
}

// qualifiedName is the qualified name of a primary key of the endorsement hierarchy (TPM 2.0
// Part 1, 26.5): name algorithm ‖ SHA-256(handle of the hierarchy ‖ name).
func (p *publicArea) qualifiedName() []byte {
	parent := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement))
	digest := sha256.Sum256(append(parent, p.name...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
}

// verifyAttest checks the attestation key's signature on a TPMS_ATTEST and what every such
// structure must say.
func verifyAttest(ak *publicArea, attest, signature []byte, kind tpm2.TPMST, qualifyingData []byte) (*tpm2.TPMSAttest, error) {
	sig, err := parse[tpm2.TPMTSignature](signature)
	if err != nil {
		return nil, fmt.Errorf("the signature is malformed: %w", err)
	}
	s, err := sig.Signature.ECDSA()
	if err != nil || sig.SigAlg != tpm2.TPMAlgECDSA || s.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("the signature is not ECDSA with SHA-256")
	}
	public, ok := ak.key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("the attestation key is not an ECC key")
	}
	digest := sha256.Sum256(attest)
	if !ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)) {
		return nil, errors.New("the attestation key did not sign it")
	}
	a, err := parse[tpm2.TPMSAttest](attest)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is malformed: %w", err)
	case a.Magic != tpm2.TPMGeneratedValue:
		return nil, errors.New("a TPM did not make it")
	case a.Type != kind:
		return nil, errors.New("it is an attestation of another kind")
	case !bytes.Equal(a.ExtraData.Buffer, qualifyingData):
		return nil, errors.New("it was made for another nonce, key, credential or connection: a recorded answer does not serve twice, and nobody may stand between agent and server")
	}
	return a, nil
}

// isSelection reports whether a selection is selectionOf(pcrs), and no more.
func isSelection(l tpm2.TPMLPCRSelection, pcrs []int) bool {
	want := selectionOf(pcrs).PCRSelections[0]
	return len(l.PCRSelections) == 1 && l.PCRSelections[0].Hash == want.Hash && bytes.Equal(l.PCRSelections[0].PCRSelect, want.PCRSelect)
}

// selectionOf returns the TPML_PCR_SELECTION for PCRs of the SHA-256 bank.
func selectionOf(pcrs []int) tpm2.TPMLPCRSelection {
	ns := make([]uint, len(pcrs))
	for i, n := range pcrs {
		ns[i] = uint(n)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(ns...)}}}
}
