// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/structures"
)

// Proof is what Finish judges.
type Proof struct {
	Evidence tpm.Evidence
	// CSRKey is the key that the agent asks an SVID for.
	CSRKey crypto.PublicKey
	// Binding names the connection (tpm.BindingLabel), as this side computes it.
	Binding []byte
	// More asks the agent for the IMA log from a byte on; its error is returned as it is. It is called
	// only when all else was found good.
	More func(tpm.More) (tpm.Continuation, error)
}

// Finish judges the evidence. A session serves once, whatever comes of it, and within
// SessionLifetime.
func (s *Session) Finish(p Proof, now time.Time) (Verdict, error) {
	if s.used.Swap(true) {
		return Verdict{}, refuse(checkSession, "the challenge was answered before; begin again")
	}
	if age := now.Sub(s.begun); age < 0 || age >= SessionLifetime {
		return Verdict{}, refuse(checkSession, "the challenge is older than %s; begin again", SessionLifetime)
	}
	s.pass(checkSession, "fresh challenge, answered once")
	if err := judgeBinding(p.Binding); err != nil {
		return Verdict{}, err
	}
	if err := s.judgeSecrets(p.Evidence, p.CSRKey); err != nil {
		return Verdict{}, err
	}
	q := tpm.QualifyingData(s.nonce, s.spki, p.Binding, s.secret)
	certified, err := s.judgeCertify(p.Evidence, q)
	if err != nil {
		return Verdict{}, err
	}
	quoted, err := judgeQuote(s.ak, p.Evidence.Quoted, s.pcrs, q, s.pass)
	if err != nil {
		return Verdict{}, err
	}
	if certified.ResetCount != quoted.ResetCount || certified.RestartCount != quoted.RestartCount {
		return Verdict{}, refuse(checkBoot, "the TPM was reset between certify and quote; begin again")
	}
	s.pass(checkBoot, "reset count %d, restart count %d", quoted.ResetCount, quoted.RestartCount)
	s.progress.Quoted = quoted
	s.progress.Facts.PCRs, s.progress.Facts.Firmware = quoted.PCRs, quoted.Firmware
	if err := s.judgeLogs(p); err != nil {
		return Verdict{}, err
	}
	return s.progress, nil
}

func (s *Session) judgeSecrets(e tpm.Evidence, csrKey crypto.PublicKey) error {
	if k, ok := s.key.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || csrKey == nil || !k.Equal(csrKey) {
		return refuse(checkCSR, "the CSR is for another key than the TPM key that was announced")
	}
	s.pass(checkCSR, "the CSR is for the key in the TPM")
	if subtle.ConstantTimeCompare(e.Secret, s.secret) != 1 {
		return refuse(checkCredential, "the TPM of the EK did not recover the secret: the attestation key does not live beside it")
	}
	s.pass(checkCredential, "the attestation key lives in the TPM of the EK")
	return nil
}

func (s *Session) judgeCertify(e tpm.Evidence, q []byte) (*structures.Attest, error) {
	a, err := verifyAttest(s.ak, e.Certify, e.CertifySignature, tpm2.TPMSTAttestCertify, q)
	if err != nil {
		return nil, refuse(checkCertify, "the certification of the agent's key: %v", err)
	}
	if !bytes.Equal(a.Name, s.key.Name) {
		return nil, refuse(checkCertify, "the certification is about another key than the agent's")
	}
	s.progress.Facts.KeyResident = true
	s.pass(checkCertify, "the agent's key lives in the same TPM and can not leave it")
	return a, nil
}
