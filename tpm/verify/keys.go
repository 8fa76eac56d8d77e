// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/structures"
)

// parsePublic reads a public area of the kinds that are used here: RSA 2048, ECC P-256 and P-384, named by
// SHA-256 or SHA-384.
func parsePublic(data []byte) (*structures.Public, error) {
	p, err := structures.ParsePublic(data)
	if err != nil {
		return nil, err
	}
	if p.NameAlg != tpm2.TPMAlgSHA256 && p.NameAlg != tpm2.TPMAlgSHA384 {
		return nil, errors.New("its name algorithm is not SHA-256 or SHA-384")
	}
	switch k := p.Key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, errors.New("its curve is not P-256 or P-384")
		}
	case *rsa.PublicKey:
		if k.N.BitLen() != 2048 || k.N.Bit(0) == 0 || k.E != 65537 {
			return nil, errors.New("it is not a 2048-bit RSA key with exponent 65537")
		}
	}
	return p, nil
}

// ekTemplates are the public areas of tpm.EKProfiles without their unique values.
var ekTemplates = func() (all [len(tpm.EKProfiles)][]byte) {
	for i, profile := range tpm.EKProfiles {
		all[i] = structures.TemplateOf(profile.Template)
	}
	return all
}()

// ekTemplate returns the template of the TCG EK Credential Profile that an endorsement key was made of, if
// we know one.
func ekTemplate(p *structures.Public) (tpm2.TPMTPublic, bool) {
	for i, template := range ekTemplates {
		if bytes.Equal(p.Template, template) {
			return tpm.EKProfiles[i].Template, true
		}
	}
	return tpm2.TPMTPublic{}, false
}

// checkSigningKey checks that a key can sign with ECDSA P-256 and SHA-256 only, was made in its TPM and can
// not leave it. A restricted key signs nothing that only looks like an attestation: without
// this check an ordinary TPM key can forge quotes.
func checkSigningKey(p *structures.Public, restricted bool) error {
	public, isECC := p.Key.(*ecdsa.PublicKey)
	switch {
	case !isECC:
		return errors.New("it is not an ECC key")
	case public.Curve != elliptic.P256() || p.NameAlg != tpm2.TPMAlgSHA256:
		return errors.New("it is not a P-256 key with SHA-256 as its name algorithm")
	case !p.Attributes.Has(structures.FixedTPM | structures.FixedParent | structures.SensitiveDataOrigin):
		return errors.New("it may exist outside of the TPM (fixedTPM, fixedParent and sensitiveDataOrigin must be set)")
	case !p.Attributes.Has(structures.Sign) || p.Attributes.Has(structures.Decrypt):
		return errors.New("it is not a key for signing only")
	case restricted && !p.Attributes.Has(structures.Restricted):
		return errors.New("it is not restricted, so it could sign forged attestations")
	case !restricted && p.Attributes.Has(structures.Restricted):
		return errors.New("it is restricted, so it could not sign a TLS handshake")
	case p.Scheme != tpm2.TPMAlgECDSA:
		return errors.New("its scheme is not ECDSA")
	case p.SchemeHash != tpm2.TPMAlgSHA256:
		return errors.New("its scheme's hash is not SHA-256")
	}
	return nil
}

// qualifiedName is the qualified name of a primary key of the endorsement hierarchy (TPM 2.0
// Part 1, 26.5): name algorithm ‖ SHA-256(handle of the hierarchy ‖ name).
func qualifiedName(p *structures.Public) []byte {
	parent := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement))
	digest := sha256.Sum256(append(parent, p.Name...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
}

// verifyAttest checks the attestation key's signature on a TPMS_ATTEST and what every such
// structure must say.
func verifyAttest(ak *structures.Public, attest, signature []byte, kind tpm2.TPMST, qualifyingData []byte) (*structures.Attest, error) {
	a, err := ak.VerifyAttest(attest, signature)
	switch {
	case err != nil:
		return nil, err
	case a.Kind != kind:
		return nil, errors.New("it is an attestation of another kind")
	case !bytes.Equal(a.ExtraData, qualifyingData):
		return nil, errors.New("it was made for another nonce, key, credential or connection: a recorded answer does not serve twice, and nobody may stand between agent and server")
	}
	return a, nil
}

// isSelection reports whether a quote is about those PCRs of the SHA-256 bank, and no more.
func isSelection(selections []structures.Selection, pcrs []int) bool {
	return len(selections) == 1 && selections[0].Hash == tpm2.TPMAlgSHA256 && bytes.Equal(selections[0].Bitmap, bitmap(pcrs))
}

// bitmap is how a selection names PCRs of a PC's TPM, which has 24.
func bitmap(pcrs []int) []byte {
	b := make([]byte, tpm.PCRCount/8)
	for _, n := range pcrs {
		b[n/8] |= 1 << (n % 8)
	}
	return b
}
