// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto/sha256"
	"encoding/binary"
)

// BindingLabel and BindingSize are of the value that names a TLS connection (RFC 9266:
// tls-exporter, without a context). Both ends of one connection compute the same, and a man in
// the middle has two connections.
const (
	BindingLabel = "EXPORTER-Channel-Binding"
	BindingSize  = 32
)

// Labels separate our attestations from each other, and from any other use of an attestation key.
const (
	attestLabel  = "assay/tpm/qualifying-data/v2"
	requoteLabel = "assay/tpm/requote/v2"
)

// QualifyingData is what Certify and Quote carry as extraData at an attestation: it binds them
// to the server's nonce, to the agent's key (spki is its DER SubjectPublicKeyInfo), to the
// connection (binding), and to the recovered secret, so that no part of one attestation serves in another.
//
//	SHA-256( label ‖ len(nonce) ‖ nonce ‖ len(spki) ‖ spki ‖ len(binding) ‖ binding ‖ len(h) ‖ h ),  h = SHA-256(secret)
//
// Lengths are 32-bit big-endian.
func QualifyingData(nonce, spki, binding, secret []byte) []byte {
	h := sha256.Sum256(secret)
	return qualify(attestLabel, nonce, spki, binding, h[:])
}

// RequoteData is what the quote in an Answer carries: it binds the quote to the question, to the
// agent's key, to the connection, and to what the agent delivered so far, which can therefore not be
// rewritten later. The count is 64-bit big-endian.
//
//	SHA-256( label ‖ len(nonce) ‖ nonce ‖ len(spki) ‖ spki ‖ len(binding) ‖ binding ‖ 8 ‖ count ‖ 32 ‖ head )
func RequoteData(nonce, spki, binding []byte, history History) []byte {
	return qualify(requoteLabel, nonce, spki, binding, binary.BigEndian.AppendUint64(nil, history.Count), history.Head[:])
}

func qualify(label string, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(label))
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return h.Sum(nil)
}
