// SPDX-License-Identifier: Apache-2.0

// Package verify judges node attestation by TPM (package tpm). It issues no TPM command and
// needs no TPM: everything it takes was sent by a machine that is not trusted yet.
//
//	Begin   Hello → Challenge     who the TPM is, and what its keys are
//	Finish  Evidence → Verdict    that the TPM answered now, and what the machine booted
//
// What passed is named, check by check, in Verdict.Checks; what failed is a *Refusal.
//
// It can not tell that a TPM sits in the machine that speaks for it: a machine may relay to
// the TPM of another. Bind the EK to the machine in the inventory where that matters.
package verify

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
)

// SessionLifetime is how long a challenge may be answered.
const SessionLifetime = 60 * time.Second

// Verdict is what a complete attestation proved.
type Verdict struct {
	// Facts are what node selectors derive from (selectors.DeriveNode).
	Facts selectors.NodeFacts
	// EKCertificate is the verified certificate, or nil when only the inventory vouches.
	EKCertificate *x509.Certificate
	// ResetCount and RestartCount are the TPM's: they rise with each boot, and with each resume.
	ResetCount, RestartCount uint32
	// Checks are those that passed, in order.
	Checks []Check
}

// Session is one attestation between Begin and Finish. It serves once.
type Session struct {
	used     atomic.Bool
	begun    time.Time
	pcrs     []int
	nonce    []byte
	secret   []byte
	ak, key  *publicArea
	spki     []byte // of key
	progress Verdict
}

// Begin judges a Hello and makes the challenge. Nonce, secret and MakeCredential take their
// randomness from rand.
func Begin(p *Policy, h tpm.Hello, now time.Time, rand io.Reader) (*Session, tpm.Challenge, error) {
	pcrs, err := p.pcrs()
	if err != nil {
		return nil, tpm.Challenge{}, fmt.Errorf("TPM attestation policy: %w", err)
	}
	if h.Version < tpm.Version {
		return nil, tpm.Challenge{}, refuse(checkVersion, "the agent speaks version %d and this server %d; upgrade the agent", h.Version, tpm.Version)
	}
	s := &Session{begun: now, pcrs: pcrs, nonce: make([]byte, tpm.NonceSize), secret: make([]byte, tpm.SecretSize)}
	s.pass(checkVersion, "messages of version %d", tpm.Version)
	ek, err := s.judgeEK(p, h, now)
	if err != nil {
		return nil, tpm.Challenge{}, err
	}
	if err := s.judgeKeys(h); err != nil {
		return nil, tpm.Challenge{}, err
	}
	if _, err := io.ReadFull(rand, s.nonce); err != nil {
		return nil, tpm.Challenge{}, fmt.Errorf("making a nonce: %w", err)
	}
	if _, err := io.ReadFull(rand, s.secret); err != nil {
		return nil, tpm.Challenge{}, fmt.Errorf("making a secret: %w", err)
	}
	to, err := tpm2.ImportEncapsulationKey(&ek.TPMTPublic)
	if err != nil {
		return nil, tpm.Challenge{}, refuse(checkEKTemplate, "no credential can be made for the EK: %v", err)
	}
	blob, encrypted, err := tpm2.CreateCredential(rand, to, s.ak.name, s.secret)
	if err != nil {
		return nil, tpm.Challenge{}, fmt.Errorf("making a credential: %w", err)
	}
	return s, tpm.Challenge{Version: tpm.Version, CredentialBlob: blob, EncryptedSecret: encrypted, Nonce: s.nonce, PCRs: pcrs}, nil
}

func (s *Session) pass(check, format string, args ...any) {
	s.progress.Checks = append(s.progress.Checks, Check{check, fmt.Sprintf(format, args...)})
}

// judgeEK checks what the EK is and who vouches for it.
func (s *Session) judgeEK(p *Policy, h tpm.Hello, now time.Time) (*publicArea, error) {
	ek, err := parsePublic(h.EKPublic)
	if err != nil {
		return nil, refuse(checkEKTemplate, "the EK is not usable: %v", err)
	}
	if !ek.isDefaultEK() {
		return nil, refuse(checkEKTemplate, "the EK is not a default EK of the TCG EK Credential Profile (RSA 2048 or ECC P-256)")
	}
	hash, err := ekHash(ek.key)
	if err != nil {
		return nil, refuse(checkEKTemplate, "the EK is not usable: %v", err)
	}
	f := &s.progress.Facts
	f.EKHash = hash
	s.pass(checkEKTemplate, "EK %s is a default %T of the TCG profile", hash, ek.key)

	certErr := s.judgeEKCertificate(p, h, ek, now)
	if certErr == nil {
		c := s.progress.EKCertificate
		s.pass(checkEKCert, "issued by %q, serial %x, for this EK, under a configured root", c.Issuer, c.SerialNumber)
	}
	switch {
	case p.AllowedEKs[hash]:
		s.pass(checkEKInventory, "EK %s is in the inventory", hash)
	case certErr != nil:
		return nil, certErr
	}
	return ek, nil
}

// judgeEKCertificate checks the EK certificate and takes its facts.
func (s *Session) judgeEKCertificate(p *Policy, h tpm.Hello, ek *publicArea, now time.Time) error {
	hash := s.progress.Facts.EKHash
	if len(h.EKCertificates) == 0 {
		return refuse(checkEKCert, "the TPM has no EK certificate; add the EK hash %s to the inventory (ek_hashes) if you know this machine", hash)
	}
	cert, err := parseEKCertificate(h.EKCertificates[0])
	if err != nil {
		return refuse(checkEKCert, "the EK certificate is not usable: %v; if you know this machine, add the EK hash %s to the inventory (ek_hashes)", err, hash)
	}
	certified, err := certificateKey(cert)
	if err != nil {
		return refuse(checkEKCert, "the EK certificate is not usable: %v", err)
	}
	if k, ok := ek.key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(certified) {
		return refuse(checkEKCert, "the EK certificate is for another key than the EK %s: it belongs to another TPM, or to an EK of this one that is not the TCG default; if you know this machine, add the EK hash to the inventory (ek_hashes)", hash)
	}
	err = verifyPath(cert, h.EKCertificates[1:], p, now)
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return refuse(checkEKCert, "the EK certificate issued by %q is not under a configured root; add its CA to ek_ca_path or the EK hash %s to the inventory (ek_hashes)", cert.Issuer, hash)
	case err != nil:
		return refuse(checkEKCert, "the EK certificate issued by %q does not verify: %v; if you know this machine, add the EK hash %s to the inventory (ek_hashes)", cert.Issuer, err, hash)
	}
	facts := s.progress.Facts
	if err := describe(cert, &facts); err != nil {
		return refuse(checkEKCert, "the EK certificate is not usable: %v", err)
	}
	s.progress.Facts, s.progress.EKCertificate = facts, cert
	return nil
}

// judgeKeys checks the attributes of the attestation key and of the agent's key. Name and
// attributes of both are proven later: by the credential and by Certify.
func (s *Session) judgeKeys(h tpm.Hello) (err error) {
	if s.ak, err = parsePublic(h.AKPublic); err != nil {
		return refuse(checkAK, "the attestation key is not usable: %v", err)
	}
	if err := s.ak.checkSigningKey(true); err != nil {
		return refuse(checkAK, "the attestation key is not fit: %v", err)
	}
	s.pass(checkAK, "restricted signing key, made in the TPM and fixed to it")
	if s.key, err = parsePublic(h.KeyPublic); err != nil {
		return refuse(checkKey, "the agent's key is not usable: %v", err)
	}
	if err := s.key.checkSigningKey(false); err != nil {
		return refuse(checkKey, "the agent's key is not fit: %v", err)
	}
	if s.spki, err = x509.MarshalPKIXPublicKey(s.key.key); err != nil {
		return refuse(checkKey, "the agent's key is not usable: %v", err)
	}
	s.pass(checkKey, "signing key, made in the TPM and fixed to it")
	return nil
}

// Finish judges the evidence. csrKey is the key that the agent asks an SVID for. A session
// serves once, whatever comes of it, and within SessionLifetime.
func (s *Session) Finish(e tpm.Evidence, csrKey crypto.PublicKey, now time.Time) (Verdict, error) {
	if s.used.Swap(true) {
		return Verdict{}, refuse(checkSession, "the challenge was answered before; begin again")
	}
	if age := now.Sub(s.begun); age < 0 || age >= SessionLifetime {
		return Verdict{}, refuse(checkSession, "the challenge is older than %s; begin again", SessionLifetime)
	}
	s.pass(checkSession, "fresh challenge, answered once")
	if err := s.judgeSecrets(e, csrKey); err != nil {
		return Verdict{}, err
	}
	q := tpm.QualifyingData(s.nonce, s.spki, s.secret)
	certified, err := s.judgeCertify(e, q)
	if err != nil {
		return Verdict{}, err
	}
	quoted, err := s.judgeQuote(e, q)
	if err != nil {
		return Verdict{}, err
	}
	c, t := certified.ClockInfo, quoted.ClockInfo
	if c.ResetCount != t.ResetCount || c.RestartCount != t.RestartCount {
		return Verdict{}, refuse(checkBoot, "the TPM was reset between certify and quote; begin again")
	}
	s.pass(checkBoot, "reset count %d, restart count %d", t.ResetCount, t.RestartCount)
	s.progress.ResetCount, s.progress.RestartCount = t.ResetCount, t.RestartCount
	s.progress.Facts.Firmware = quoted.FirmwareVersion
	return s.progress, nil
}

func (s *Session) judgeSecrets(e tpm.Evidence, csrKey crypto.PublicKey) error {
	if k, ok := s.key.key.(interface{ Equal(crypto.PublicKey) bool }); !ok || csrKey == nil || !k.Equal(csrKey) {
		return refuse(checkCSR, "the CSR is for another key than the TPM key that was announced")
	}
	s.pass(checkCSR, "the CSR is for the key in the TPM")
	if subtle.ConstantTimeCompare(e.Secret, s.secret) != 1 {
		return refuse(checkCredential, "the TPM of the EK did not recover the secret: the attestation key does not live beside it")
	}
	s.pass(checkCredential, "the attestation key lives in the TPM of the EK")
	return nil
}

func (s *Session) judgeCertify(e tpm.Evidence, q []byte) (*tpm2.TPMSAttest, error) {
	a, err := verifyAttest(s.ak, e.Certify, e.CertifySignature, tpm2.TPMSTAttestCertify, q)
	if err != nil {
		return nil, refuse(checkCertify, "the certification of the agent's key: %v", err)
	}
	info, err := a.Attested.Certify()
	if err != nil {
		return nil, refuse(checkCertify, "the certification of the agent's key: %v", err)
	}
	if !bytes.Equal(info.Name.Buffer, s.key.name) {
		return nil, refuse(checkCertify, "the certification is about another key than the agent's")
	}
	s.progress.Facts.KeyResident = true
	s.pass(checkCertify, "the agent's key lives in the same TPM and can not leave it")
	return a, nil
}

func (s *Session) judgeQuote(e tpm.Evidence, q []byte) (*tpm2.TPMSAttest, error) {
	a, err := verifyAttest(s.ak, e.Quote, e.QuoteSignature, tpm2.TPMSTAttestQuote, q)
	if err != nil {
		return nil, refuse(checkQuote, "the quote: %v", err)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, refuse(checkQuote, "the quote: %v", err)
	}
	s.pass(checkQuote, "made by the TPM for this challenge")
	// Only the endorsement hierarchy shows its keys the true counters and firmware version.
	if !bytes.Equal(a.QualifiedSigner.Buffer, s.ak.qualifiedName()) {
		return nil, refuse(checkHierarchy, "the attestation key is not a primary key of the endorsement hierarchy, so the TPM hides its counters from it")
	}
	s.pass(checkHierarchy, "primary key of the endorsement hierarchy: counters and firmware version are true")
	if !bytes.Equal(tpm2.Marshal(info.PCRSelect), tpm2.Marshal(selectionOf(s.pcrs))) {
		return nil, refuse(checkSelection, "the quote is about other PCRs than %v", s.pcrs)
	}
	s.pass(checkSelection, "SHA-256 PCRs %s", strings.Trim(fmt.Sprint(s.pcrs), "[]"))
	values := make(map[int]selectors.Digest, len(s.pcrs))
	h := sha256.New()
	for _, n := range s.pcrs {
		v := e.PCRValues[n]
		if len(v) != sha256.Size {
			return nil, refuse(checkPCRs, "the value of PCR %d is missing", n)
		}
		h.Write(v)
		values[n] = selectors.Digest(v)
	}
	if len(e.PCRValues) != len(s.pcrs) || !bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
		return nil, refuse(checkPCRs, "the PCR values are not the quoted ones")
	}
	s.progress.Facts.PCRs = values
	s.pass(checkPCRs, "%d PCR values are the quoted ones", len(values))
	return a, nil
}
