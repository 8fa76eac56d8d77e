// SPDX-License-Identifier: Apache-2.0

package devid

import (
	"encoding/json"
	"fmt"
)

// Payload is what the agent opens with. DevIDCert are DER certificates, the leaf first; the
// public keys are TPMT_PUBLIC, CertifiedDevID is a TPMS_ATTEST, CertificationSignature a
// TPMT_SIGNATURE by the AK.
type Payload struct {
	DevIDCert              [][]byte
	DevIDPub               []byte
	EKCert                 []byte
	EKPub                  []byte
	AKPub                  []byte
	CertifiedDevID         []byte
	CertificationSignature []byte
}

// Challenge asks for both proofs.
type Challenge struct {
	// DevID is to be signed by the DevID key, with SHA-256.
	DevID          []byte
	CredActivation *Credential
}

// Credential is MakeCredential's output, without the TPM2B sizes.
type Credential struct {
	Credential []byte
	Secret     []byte
}

// Response answers a Challenge: a signature, and what ActivateCredential recovered.
type Response struct {
	DevID          []byte
	CredActivation []byte
}

const maxMessage = 256 << 10 // bytes

// Decode reads a message from a stranger.
func Decode[M Payload | Challenge | Response](data []byte) (m M, err error) {
	if len(data) > maxMessage {
		return m, fmt.Errorf("%d bytes are over the limit of %d", len(data), maxMessage)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("unable to unmarshal: %w", err)
	}
	return m, nil
}
