// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/structures"
)

// Quoted is what a quote said, signed by the attestation key.
type Quoted struct {
	// ResetCount and RestartCount rise with each boot, and with each resume. Clock is in
	// milliseconds of the TPM's time; within one boot it never goes back (TPM 2.0 Part 1, 36.3).
	ResetCount   uint32 `json:"reset_count"`
	RestartCount uint32 `json:"restart_count"`
	Clock        uint64 `json:"clock"`
	// Firmware is the TPM's firmware version.
	Firmware uint64 `json:"firmware"`
	// PCRs are values of the SHA-256 bank.
	PCRs map[int]selectors.Digest `json:"pcrs"`
}

// SameBoot reports whether both quotes are of one boot, without a resume between them.
func (q *Quoted) SameBoot(other *Quoted) bool {
	return q.ResetCount == other.ResetCount && q.RestartCount == other.RestartCount
}

// Before reports whether a TPM must have made q before other: each boot has a higher count, and within a
// boot time goes on.
func (q *Quoted) Before(other *Quoted) bool {
	switch {
	case q.ResetCount != other.ResetCount:
		return q.ResetCount < other.ResetCount
	case q.RestartCount != other.RestartCount:
		return q.RestartCount < other.RestartCount
	}
	return q.Clock < other.Clock
}

// AK is the attestation key of an agent whose attestation vouched for it.
type AK struct{ public *structures.Public }

// ParseAK reads Verdict.AK.
func ParseAK(public []byte) (*AK, error) {
	p, err := parsePublic(public)
	if err == nil {
		err = checkSigningKey(p, true)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the attestation key that was kept: %w", err)
	}
	return &AK{p}, nil
}

// Requote judges the answer to a question that was asked the agent with the key of that SPKI, on the
// connection that binding names. What the IMA log says is for the caller: ima.State.Advance.
func (k *AK) Requote(question tpm.Question, a tpm.Answer, spki, binding []byte) (Quoted, error) {
	if err := judgeBinding(binding); err != nil {
		return Quoted{}, err
	}
	q := tpm.RequoteData(question.Nonce, spki, binding, a.History)
	return judgeQuote(k.public, a.Quoted, question.PCRs, q, func(string, string, ...any) {})
}

func judgeBinding(binding []byte) error {
	if len(binding) != tpm.BindingSize {
		return refuse(checkConnection, "the connection has no channel binding (RFC 9266); attest over TLS 1.3")
	}
	return nil
}

// judgeQuote checks everything about a quote except what its PCRs mean. pass is told of each check.
func judgeQuote(ak *structures.Public, m tpm.Quoted, pcrs []int, q []byte, pass func(check, format string, args ...any)) (Quoted, error) {
	a, err := verifyAttest(ak, m.Quote, m.QuoteSignature, tpm2.TPMSTAttestQuote, q)
	if err != nil {
		return Quoted{}, refuse(checkQuote, "the quote: %v", err)
	}
	pass(checkQuote, "made by the TPM for this challenge")
	// Only the endorsement hierarchy shows its keys the true counters and firmware version.
	if !bytes.Equal(a.QualifiedSigner, qualifiedName(ak)) {
		return Quoted{}, refuse(checkHierarchy, "the attestation key is not a primary key of the endorsement hierarchy, so the TPM hides its counters from it")
	}
	pass(checkHierarchy, "primary key of the endorsement hierarchy: counters and firmware version are true")
	if !isSelection(a.Selections, pcrs) {
		return Quoted{}, refuse(checkSelection, "the quote is about other PCRs than %v", pcrs)
	}
	pass(checkSelection, "SHA-256 PCRs %s", strings.Trim(fmt.Sprint(pcrs), "[]"))
	values := make(map[int]selectors.Digest, len(pcrs))
	h := sha256.New()
	for _, n := range pcrs {
		v := m.PCRValues[n]
		if len(v) != sha256.Size {
			return Quoted{}, refuse(checkPCRs, "the value of PCR %d is missing", n)
		}
		h.Write(v)
		values[n] = selectors.Digest(v)
	}
	if len(m.PCRValues) != len(pcrs) || !bytes.Equal(h.Sum(nil), a.PCRDigest) {
		return Quoted{}, refuse(checkPCRs, "the PCR values are not the quoted ones")
	}
	pass(checkPCRs, "%d PCR values are the quoted ones", len(values))
	return Quoted{a.ResetCount, a.RestartCount, a.Clock, a.Firmware, values}, nil
}
