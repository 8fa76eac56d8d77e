// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/json"
	"errors"
	"fmt"
)

const (
	// AttestorType is the attestation type in AttestAgent and in agent IDs.
	AttestorType = "tpm"
	// Version is the version of the messages described here.
	Version = 1
	// MaxMessageSize bounds an encoded message, in bytes.
	MaxMessageSize = 1 << 20
	// NonceSize and SecretSize are in bytes; the secret fills the digest of the EK's
	// name algorithm, SHA-256.
	NonceSize  = 32
	SecretSize = 32
	// PCRCount is the number of PCRs in a bank (PC Client Platform TPM Profile, section 4.6).
	PCRCount = 24
)

// Limits on parts of messages. The largest TPM structure that we carry is far below maxPart.
const (
	maxPart         = 16 << 10
	maxCertificates = 8
)

// Hello is the agent's opening: who its TPM says it is. Nothing in it is proven yet.
type Hello struct {
	// Version is the newest version of the messages that the agent speaks.
	Version int `json:"version"`
	// EKCertificates are DER certificates, the EK's own first, then intermediates. Empty
	// when the TPM has none.
	EKCertificates [][]byte `json:"ek_certificates,omitempty"`
	// EKPublic, AKPublic and KeyPublic are TPMT_PUBLIC structures (TPM 2.0 Part 2, 12.2.4)
	// of the endorsement key, the attestation key, and the key that the agent wants an SVID for.
	EKPublic  []byte `json:"ek_public"`
	AKPublic  []byte `json:"ak_public"`
	KeyPublic []byte `json:"key_public"`
}

// Challenge is the server's question.
type Challenge struct {
	// Version is the version of the messages to speak from here on.
	Version int `json:"version"`
	// CredentialBlob and EncryptedSecret are the outputs of MakeCredential, without their
	// TPM2B sizes (TPM 2.0 Part 1, 24).
	CredentialBlob  []byte `json:"credential_blob"`
	EncryptedSecret []byte `json:"encrypted_secret"`
	// Nonce is NonceSize fresh bytes.
	Nonce []byte `json:"nonce"`
	// PCRs of the SHA-256 bank to quote, ascending.
	PCRs []int `json:"pcrs"`
}

// Evidence is the agent's answer.
type Evidence struct {
	// Secret is what ActivateCredential recovered.
	Secret []byte `json:"secret"`
	// Certify and Quote are TPMS_ATTEST structures (TPM 2.0 Part 2, 10.12.12) and the
	// signatures TPMT_SIGNATURE by the attestation key.
	Certify          []byte `json:"certify"`
	CertifySignature []byte `json:"certify_signature"`
	Quote            []byte `json:"quote"`
	QuoteSignature   []byte `json:"quote_signature"`
	// PCRValues are the values behind the quote, by PCR number.
	PCRValues map[int][]byte `json:"pcr_values"`
}

// Message is one of the messages of an attestation.
type Message interface {
	Hello | Challenge | Evidence
	check() error
}

// ErrMalformed is wrapped by every error of Decode.
var ErrMalformed = errors.New("malformed TPM attestation message")

// Encode writes a message.
func Encode[M Message](m M) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", m, err)
	}
	return json.Marshal(m)
}

// Decode reads a message and checks sizes and presence of its parts; what they say is for
// tpm/verify to judge. Unknown fields are tolerated: later versions add some.
func Decode[M Message](data []byte) (M, error) {
	var m, none M
	if len(data) > MaxMessageSize {
		return none, fmt.Errorf("%w: %T of %d bytes is over the limit of %d", ErrMalformed, m, len(data), MaxMessageSize)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return none, fmt.Errorf("%w: %T: %w", ErrMalformed, m, err)
	}
	if err := m.check(); err != nil {
		return none, fmt.Errorf("%w: %T: %w", ErrMalformed, m, err)
	}
	return m, nil
}

func (m Hello) check() error {
	if m.Version < 1 {
		return errors.New("version is missing")
	}
	if len(m.EKCertificates) > maxCertificates {
		return fmt.Errorf("ek_certificates holds %d certificates, at most %d are allowed", len(m.EKCertificates), maxCertificates)
	}
	for _, der := range m.EKCertificates {
		if err := part("ek_certificates", der); err != nil {
			return err
		}
	}
	return errors.Join(part("ek_public", m.EKPublic), part("ak_public", m.AKPublic), part("key_public", m.KeyPublic))
}

func (m Challenge) check() error {
	if m.Version < 1 {
		return errors.New("version is missing")
	}
	if len(m.Nonce) != NonceSize {
		return fmt.Errorf("nonce has %d bytes, want %d", len(m.Nonce), NonceSize)
	}
	return errors.Join(part("credential_blob", m.CredentialBlob), part("encrypted_secret", m.EncryptedSecret), CheckPCRs(m.PCRs))
}

func (m Evidence) check() error {
	if len(m.PCRValues) > PCRCount {
		return fmt.Errorf("pcr_values holds %d values, a bank has %d", len(m.PCRValues), PCRCount)
	}
	for n, v := range m.PCRValues {
		if n < 0 || n >= PCRCount || len(v) != 32 {
			return fmt.Errorf("pcr_values: PCR %d with %d bytes is not of the SHA-256 bank", n, len(v))
		}
	}
	return errors.Join(part("secret", m.Secret), part("certify", m.Certify), part("certify_signature", m.CertifySignature),
		part("quote", m.Quote), part("quote_signature", m.QuoteSignature))
}

// CheckPCRs reports whether a selection is not empty, ascending and within a bank.
func CheckPCRs(pcrs []int) error {
	if len(pcrs) == 0 {
		return errors.New("the PCR selection is empty")
	}
	last := -1
	for _, n := range pcrs {
		if n <= last || n >= PCRCount {
			return fmt.Errorf("the PCR selection %v is not ascending within 0 to %d", pcrs, PCRCount-1)
		}
		last = n
	}
	return nil
}

func part(name string, b []byte) error {
	switch {
	case len(b) == 0:
		return fmt.Errorf("%s is missing", name)
	case len(b) > maxPart:
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", name, len(b), maxPart)
	}
	return nil
}
