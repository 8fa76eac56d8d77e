// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/assay-id/assay/tpm/octets"
)

const (
	// AttestorType is the attestation type in AttestAgent and in agent IDs.
	AttestorType = "tpm"
	// Version is the version of the messages described here.
	Version = 3
	// MaxMessageSize bounds an encoded message, in bytes.
	MaxMessageSize = 2 << 20
	// MaxBootLog and MaxIMAChunk bound the logs in one message, in bytes.
	MaxBootLog  = 1 << 20
	MaxIMAChunk = 512 << 10
	// NonceSize and SecretSize are in bytes; the secret fills the digest of the EK's
	// name algorithm, SHA-256.
	NonceSize  = 32
	SecretSize = 32
	// PCRCount is the number of PCRs in a bank (PC Client Platform TPM Profile, section 4.6).
	PCRCount = 24
)

// Limits on parts of messages. The largest TPM structure that we carry is far below maxPart; a
// kernel's command line has 4 KiB at most (x86; 2 KiB on arm64).
const (
	maxPart         = 16 << 10
	maxCertificates = 8
	maxCommandLine  = 16 << 10
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

// Quoted says what a TPM's PCRs were.
type Quoted struct {
	// Quote is a TPMS_ATTEST structure (TPM 2.0 Part 2, 10.12.12), QuoteSignature the
	// TPMT_SIGNATURE by the attestation key.
	Quote          []byte `json:"quote"`
	QuoteSignature []byte `json:"quote_signature"`
	// PCRValues are the values behind the quote, by PCR number.
	PCRValues map[int][]byte `json:"pcr_values"`
}

// IMALog is a part of the machine's IMA log, from the byte that was asked for. It was read after
// the quote, so the log as a whole holds at least what the quote speaks of.
type IMALog struct {
	// IMA are at most MaxIMAChunk bytes; none on a machine without an IMA log.
	IMA []byte `json:"-"`
	// IMAMore says that the log goes on.
	IMAMore bool `json:"ima_more,omitempty"`
}

// Evidence is the agent's answer.
type Evidence struct {
	// Secret is what ActivateCredential recovered.
	Secret []byte `json:"secret"`
	// Certify is a TPMS_ATTEST structure, CertifySignature its signature.
	Certify          []byte `json:"certify"`
	CertifySignature []byte `json:"certify_signature"`
	Quoted
	// BootLog is the firmware's event log; empty where the kernel shows none.
	BootLog []byte `json:"-"`
	// CommandLine is the kernel's (/proc/cmdline without the line feed): a claim.
	CommandLine string `json:"command_line,omitempty"`
	// AgentSHA256 is the digest of the agent's program: a claim, which the IMA log may bear out.
	AgentSHA256 []byte `json:"agent_sha256,omitempty"`
	// IMALog begins at the log's beginning.
	IMALog
}

// More asks, as one more challenge, for the IMA log from a byte on.
type More struct {
	Version   int   `json:"version"`
	IMAOffset int64 `json:"ima_offset"`
}

// Continuation answers More.
type Continuation struct{ IMALog }

// Question asks an agent that was admitted whether its machine still is what it was.
type Question struct {
	Version int `json:"version"`
	// Nonce is NonceSize fresh bytes.
	Nonce []byte `json:"nonce"`
	// PCRs of the SHA-256 bank to quote, ascending.
	PCRs []int `json:"pcrs"`
	// IMAOffset is the byte from which the server does not know the IMA log.
	IMAOffset int64 `json:"ima_offset"`
}

// Answer answers a Question.
type Answer struct {
	Quoted
	IMALog
	History History `json:"history"`
}

// History names what the agent delivered so far: a hash chain over its records.
type History struct {
	// Count is the number of records since its data_dir was made, Head the chain's last value.
	Count uint64   `json:"count"`
	Head  [32]byte `json:"head"`
}

// Message is one of the messages of an attestation.
type Message interface {
	Hello | Challenge | Evidence | More | Continuation | Question | Answer
	check() error
}

// ErrMalformed is wrapped by every error of Decode.
var ErrMalformed = errors.New("malformed TPM attestation message")

// logs are the parts of a message that go behind its JSON document.
func logs[M Message](m *M) []*[]byte {
	switch m := any(m).(type) {
	case *Evidence:
		return []*[]byte{&m.BootLog, &m.IMA}
	case *Continuation:
		return []*[]byte{&m.IMA}
	case *Answer:
		return []*[]byte{&m.IMA}
	}
	return nil
}

// Encode writes a message.
func Encode[M Message](m M) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", m, err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", m, err)
	}
	for _, log := range logs(&m) {
		data = append(binary.BigEndian.AppendUint32(data, uint32(len(*log))), *log...)
	}
	return data, nil
}

// Decode reads a message and checks sizes and presence of its parts; what they say is for
// tpm/verify to judge. Unknown fields are tolerated: later versions add some.
func Decode[M Message](data []byte) (M, error) {
	m, err := decode[M](data)
	if err == nil {
		err = m.check()
	}
	if err != nil {
		var none M
		return none, fmt.Errorf("%w: %T: %w", ErrMalformed, none, err)
	}
	return m, nil
}

func decode[M Message](data []byte) (m M, err error) {
	if len(data) > MaxMessageSize {
		return m, fmt.Errorf("%d bytes are over the limit of %d", len(data), MaxMessageSize)
	}
	document := json.NewDecoder(bytes.NewReader(data))
	if err := document.Decode(&m); err != nil {
		return m, err
	}
	r := octets.Big(data[document.InputOffset():])
	for _, log := range logs(&m) {
		*log = append(*log, r.Sized32(MaxBootLog)...)
	}
	if !r.Done() {
		return m, errors.New("what follows the document is not its logs")
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
	return errors.Join(checkNonce(m.Nonce), part("credential_blob", m.CredentialBlob), part("encrypted_secret", m.EncryptedSecret), CheckPCRs(m.PCRs))
}

func (m Evidence) check() error {
	switch {
	case len(m.BootLog) > MaxBootLog:
		return fmt.Errorf("boot_log has %d bytes, at most %d are allowed", len(m.BootLog), MaxBootLog)
	case len(m.CommandLine) > maxCommandLine:
		return fmt.Errorf("command_line has %d bytes, at most %d are allowed", len(m.CommandLine), maxCommandLine)
	case len(m.AgentSHA256) != 0 && len(m.AgentSHA256) != 32:
		return fmt.Errorf("agent_sha256 has %d bytes, want 32", len(m.AgentSHA256))
	}
	return errors.Join(part("secret", m.Secret), part("certify", m.Certify), part("certify_signature", m.CertifySignature),
		m.Quoted.check(), m.IMALog.check())
}

func (m More) check() error { return checkAsked(m.Version, m.IMAOffset) }

func (m Continuation) check() error { return m.IMALog.check() }

func (m Question) check() error {
	return errors.Join(checkAsked(m.Version, m.IMAOffset), checkNonce(m.Nonce), CheckPCRs(m.PCRs))
}

func (m Answer) check() error { return errors.Join(m.Quoted.check(), m.IMALog.check()) }

func (q *Quoted) check() error {
	if len(q.PCRValues) > PCRCount {
		return fmt.Errorf("pcr_values holds %d values, a bank has %d", len(q.PCRValues), PCRCount)
	}
	for n, v := range q.PCRValues {
		if n < 0 || n >= PCRCount || len(v) != 32 {
			return fmt.Errorf("pcr_values: PCR %d with %d bytes is not of the SHA-256 bank", n, len(v))
		}
	}
	return errors.Join(part("quote", q.Quote), part("quote_signature", q.QuoteSignature))
}

func (l *IMALog) check() error {
	switch {
	case len(l.IMA) > MaxIMAChunk:
		return fmt.Errorf("ima has %d bytes, at most %d are allowed", len(l.IMA), MaxIMAChunk)
	case l.IMAMore && len(l.IMA) == 0:
		return errors.New("ima_more is said of an empty part")
	}
	return nil
}

func checkAsked(version int, offset int64) error {
	switch {
	case version < 1:
		return errors.New("version is missing")
	case offset < 0:
		return errors.New("ima_offset is negative")
	}
	return nil
}

func checkNonce(nonce []byte) error {
	if len(nonce) != NonceSize {
		return fmt.Errorf("nonce has %d bytes, want %d", len(nonce), NonceSize)
	}
	return nil
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
