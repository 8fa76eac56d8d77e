// SPDX-License-Identifier: Apache-2.0

// Package verify judges node attestation by TPM (package tpm). It issues no TPM command and
// needs no TPM: everything it takes was sent by a machine that is not trusted yet.
//
//	Begin    Hello → Challenge     who the TPM is, and what its keys are
//	Finish   Evidence → Verdict    that the TPM answered now, and what the machine booted and runs
//	Requote  Answer → Quoted       that it still does
//
// What passed is named, check by check, in Verdict.Checks; what failed is a *Refusal.
//
// It can not tell that a TPM sits in the machine that speaks for it: a machine may relay to
// the TPM of another. Bind the EK to the machine in the inventory where that matters.
package verify

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/structures"
)

// SessionLifetime is how long a challenge may be answered.
const SessionLifetime = 60 * time.Second

// Verdict is what a complete attestation proved.
type Verdict struct {
	// Facts are what node selectors derive from (selectors.DeriveNode).
	Facts selectors.NodeFacts
	// EKCertificate is the verified certificate, or nil when only the inventory vouches.
	EKCertificate *x509.Certificate
	// AK is the TPMT_PUBLIC of the attestation key that the TPM vouches for.
	AK []byte
	// Quoted is what the quote said.
	Quoted Quoted
	// Boot is what the boot log proved, nil without one. BootLog and CommandLine are what was sent.
	Boot        *eventlog.Boot
	BootLog     []byte
	CommandLine string
	// IMA is how far the IMA log was replayed, Files its entries; the zero State without one.
	IMA   ima.State
	Files []ima.Entry
	// Unvouched says, with Policy.Pending, why nobody vouches for the EK; else it is empty.
	Unvouched string
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
	ak, key  *structures.Public
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
	ek, template, err := s.judgeEK(p, h, now)
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
	blob, encrypted, err := ek.MakeCredential(rand, template, s.ak.Name, s.secret)
	if err != nil {
		return nil, tpm.Challenge{}, fmt.Errorf("making a credential: %w", err)
	}
	return s, tpm.Challenge{Version: tpm.Version, CredentialBlob: blob, EncryptedSecret: encrypted, Nonce: s.nonce, PCRs: pcrs}, nil
}

func (s *Session) pass(check, format string, args ...any) {
	s.progress.Checks = append(s.progress.Checks, Check{check, fmt.Sprintf(format, args...)})
}

// judgeEK checks what the EK is, of which template, and who vouches for it.
func (s *Session) judgeEK(p *Policy, h tpm.Hello, now time.Time) (*structures.Public, tpm2.TPMTPublic, error) {
	var none tpm2.TPMTPublic
	ek, err := parsePublic(h.EKPublic)
	if err != nil {
		return nil, none, refuse(checkEKTemplate, "the EK is not usable: %v", err)
	}
	template, known := ekTemplate(ek)
	if !known {
		return nil, none, refuse(checkEKTemplate, "the EK is not an EK of the TCG EK Credential Profile that is known here (RSA 2048, ECC P-256 or P-384)")
	}
	hash, err := ekHash(ek.Key)
	if err != nil {
		return nil, none, refuse(checkEKTemplate, "the EK is not usable: %v", err)
	}
	f := &s.progress.Facts
	f.EKHash = hash
	s.pass(checkEKTemplate, "EK %s is a %T of the TCG profile", hash, ek.Key)

	certErr := s.judgeEKCertificate(p, h, ek, now)
	if certErr == nil {
		c := s.progress.EKCertificate
		s.pass(checkEKCert, "issued by %q, serial %x, for this EK, under a configured root", c.Issuer, c.SerialNumber)
	}
	switch {
	case p.AllowedEKs[hash] || p.Inventory != nil && p.Inventory.Known(hash):
		s.pass(checkEKInventory, "EK %s is in the inventory", hash)
	case certErr != nil && p.Pending:
		s.progress.Unvouched = certErr.Detail
	case certErr != nil:
		return nil, none, certErr
	}
	return ek, template, nil
}

// judgeEKCertificate checks the EK certificate and takes its facts.
func (s *Session) judgeEKCertificate(p *Policy, h tpm.Hello, ek *structures.Public, now time.Time) *Refusal {
	hash := s.progress.Facts.EKHash
	if len(h.EKCertificates) == 0 {
		return refuse(checkEKCert, "the TPM has no EK certificate; add the EK hash %s to the inventory (assay tpm inventory add) if you know this machine", hash)
	}
	cert, err := parseEKCertificate(h.EKCertificates[0])
	if err != nil {
		return refuse(checkEKCert, "the EK certificate is not usable: %v; if you know this machine, add the EK hash %s to the inventory (assay tpm inventory add)", err, hash)
	}
	certified, err := certificateKey(cert)
	if err != nil {
		return refuse(checkEKCert, "the EK certificate is not usable: %v", err)
	}
	if k, ok := ek.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(certified) {
		return refuse(checkEKCert, "the EK certificate is for another key than the EK %s: it belongs to another TPM, or to an EK of this one that is not the TCG default; if you know this machine, add the EK hash to the inventory (assay tpm inventory add)", hash)
	}
	err = verifyPath(cert, h.EKCertificates[1:], p, now)
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return refuse(checkEKCert, "the EK certificate issued by %q is not under a configured root; add its CA to ek_ca_path or the EK hash %s to the inventory (assay tpm inventory add)", cert.Issuer, hash)
	case err != nil:
		return refuse(checkEKCert, "the EK certificate issued by %q does not verify: %v; if you know this machine, add the EK hash %s to the inventory (assay tpm inventory add)", cert.Issuer, err, hash)
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
	if err := checkSigningKey(s.ak, true); err != nil {
		return refuse(checkAK, "the attestation key is not fit: %v", err)
	}
	s.pass(checkAK, "restricted signing key, made in the TPM and fixed to it")
	if s.key, err = parsePublic(h.KeyPublic); err != nil {
		return refuse(checkKey, "the agent's key is not usable: %v", err)
	}
	if err := checkSigningKey(s.key, false); err != nil {
		return refuse(checkKey, "the agent's key is not fit: %v", err)
	}
	if s.spki, err = x509.MarshalPKIXPublicKey(s.key.Key); err != nil {
		return refuse(checkKey, "the agent's key is not usable: %v", err)
	}
	s.pass(checkKey, "signing key, made in the TPM and fixed to it")
	s.progress.AK = h.AKPublic
	return nil
}
