// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto/sha256"
	"encoding/binary"
)

// qualifyingLabel separates our attestations from any other use of an attestation key.
const qualifyingLabel = "assay/tpm/qualifying-data/v1"

// QualifyingData is what Certify and Quote carry as extraData: it binds them to the server's
// nonce, to the agent's key (spki is its DER SubjectPublicKeyInfo), and to the recovered secret,
// so that no part of one attestation serves in another.
//
//	SHA-256( label ‖ len(nonce) ‖ nonce ‖ len(spki) ‖ spki ‖ len(h) ‖ h ),  h = SHA-256(secret)
//
// Lengths are 32-bit big-endian.
func QualifyingData(nonce, spki, secret []byte) []byte {
	secretHash := sha256.Sum256(secret)
	h := sha256.New()
	h.Write([]byte(qualifyingLabel))
	for _, p := range [...][]byte{nonce, spki, secretHash[:]} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return h.Sum(nil)
}
