// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
)

// Answer answers a challenge that was made for the Hello of the same key, on the connection that
// binding names. A challenge for another TPM or another attestation key fails in the TPM (TPM_RC_INTEGRITY).
func (d *Device) Answer(key *Key, c tpm.Challenge, binding []byte) (tpm.Evidence, error) {
	if err := d.askable(key, c.Version, c.PCRs, binding); err != nil {
		return tpm.Evidence{}, fmt.Errorf("answering the challenge: %w", err)
	}
	e, err := d.answer(key, c, binding)
	if err == nil {
		err = d.addLogs(&e)
	}
	if err != nil {
		return tpm.Evidence{}, fmt.Errorf("answering the challenge: %w", err)
	}
	return e, nil
}

// More returns the part of the IMA log that a server asks for after Answer.
func (d *Device) More(m tpm.More) (tpm.Continuation, error) {
	part, err := d.logs.IMALog(m.IMAOffset)
	if err != nil {
		return tpm.Continuation{}, fmt.Errorf("reading the IMA log: %w", err)
	}
	return tpm.Continuation{IMALog: part}, nil
}

// Requote answers a question about the machine as it is now, for an agent that was admitted with key.
func (d *Device) Requote(key *Key, q tpm.Question, binding []byte, history tpm.History) (tpm.Answer, error) {
	if err := d.askable(key, q.Version, q.PCRs, binding); err != nil {
		return tpm.Answer{}, fmt.Errorf("quoting again: %w", err)
	}
	a := tpm.Answer{History: history}
	spki, err := x509.MarshalPKIXPublicKey(key.public)
	if err != nil {
		return tpm.Answer{}, fmt.Errorf("encoding the key: %w", err)
	}
	if err := d.lock(); err != nil {
		return tpm.Answer{}, err
	}
	err = d.with([]*object{d.ak}, func(l []loaded) error {
		return d.quote(l[0], tpm.RequoteData(q.Nonce, spki, binding, history), q.PCRs, &a.Quoted)
	})
	d.mu.Unlock()
	if err == nil {
		a.IMALog, err = d.logs.IMALog(q.IMAOffset)
	}
	if err != nil {
		return tpm.Answer{}, fmt.Errorf("quoting again: %w", err)
	}
	return a, nil
}

// askable checks what every question has.
func (d *Device) askable(key *Key, version int, pcrs []int, binding []byte) error {
	switch {
	case key.device != d:
		return errors.New("the key belongs to another TPM device")
	case version != tpm.Version:
		return fmt.Errorf("the server speaks version %d of TPM attestation and this agent speaks %d; use an agent that fits the server", version, tpm.Version)
	case len(binding) != tpm.BindingSize:
		return errors.New("the connection to the server has no channel binding (RFC 9266); it must be TLS 1.3")
	}
	return tpm.CheckPCRs(pcrs)
}

func (d *Device) answer(key *Key, c tpm.Challenge, binding []byte) (e tpm.Evidence, err error) {
	spki, err := x509.MarshalPKIXPublicKey(key.public)
	if err != nil {
		return e, fmt.Errorf("encoding the key: %w", err)
	}
	if err := d.lock(); err != nil {
		return e, err
	}
	defer d.mu.Unlock()
	err = d.with([]*object{d.ak, d.ek}, func(l []loaded) error {
		e.Secret, err = d.activate(l[0], l[1], c.CredentialBlob, c.EncryptedSecret)
		return err
	})
	if err != nil {
		return e, err
	}
	q := tpm.QualifyingData(c.Nonce, spki, binding, e.Secret)
	err = d.with([]*object{d.ak, key.object}, func(l []loaded) error {
		if e.Certify, e.CertifySignature, err = d.certify(l[0], l[1], q); err != nil {
			return err
		}
		return d.quote(l[0], q, c.PCRs, &e.Quoted)
	})
	return e, err
}

// addLogs reads the logs after the quote, so that they hold at least what it speaks of.
func (d *Device) addLogs(e *tpm.Evidence) (err error) {
	if e.BootLog, err = d.logs.BootLog(); err != nil {
		return fmt.Errorf("reading the firmware's event log: %w", err)
	}
	if e.CommandLine, err = d.logs.CommandLineText(); err != nil {
		return fmt.Errorf("reading the kernel's command line: %w", err)
	}
	if e.IMALog, err = d.logs.IMALog(0); err != nil {
		return fmt.Errorf("reading the IMA log: %w", err)
	}
	if e.AgentSHA256, err = d.program.of(d.logs.Program); err != nil {
		return fmt.Errorf("reading the agent's program: %w", err)
	}
	return nil
}

// activate recovers the secret of a credential. The session that carries it is salted to the
// EK, whose certificate the server verifies, and encrypted: a listener on the bus learns nothing.
func (d *Device) activate(ak, ek loaded, blob, encrypted []byte) ([]byte, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.public)
	if err != nil {
		return nil, fmt.Errorf("reading the endorsement key: %w", err)
	}
	if public.ObjectAttributes.UserWithAuth { // the high-range templates
		return d.activateIn(tpm2.PasswordAuth(nil), ak, ek, public, blob, encrypted)
	}
	policy, done, err := tpm2.PolicySession(d.tpm, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	var secret []byte
	_, err = tpm2.PolicySecret{
		AuthHandle:    d.endorsement.auth(),
		PolicySession: policy.Handle(), NonceTPM: policy.NonceTPM(),
	}.Execute(d.tpm)
	if err != nil {
		err = fmt.Errorf("TPM2_PolicySecret: %w", err)
	} else {
		secret, err = d.activateIn(policy, ak, ek, public, blob, encrypted)
	}
	if closing := done(); closing != nil && err == nil && !errors.Is(closing, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("TPM2_FlushContext: %w", closing)
	}
	return secret, err
}

func (d *Device) activateIn(auth tpm2.Session, ak, ek loaded, public *tpm2.TPMTPublic, blob, encrypted []byte) ([]byte, error) {
	r, err := tpm2.ActivateCredential{
		ActivateHandle: ak.auth(),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: auth},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
	}.Execute(d.tpm, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(ek.handle, *public), tpm2.AESEncryption(128, tpm2.EncryptInOut)))
	if err != nil {
		return nil, fmt.Errorf("TPM2_ActivateCredential: %w", err)
	}
	return r.CertInfo.Buffer, nil
}

func (d *Device) certify(ak, key loaded, qualifyingData []byte) (attest, signature []byte, err error) {
	r, err := tpm2.Certify{
		ObjectHandle: key.auth(), SignHandle: ak.auth(),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifyingData}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(d.tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("TPM2_Certify: %w", err)
	}
	return r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature), nil
}

// quoteAttempts is how often PCRs may change between reading and quoting: IMA extends PCR 10
// whenever a program or file is measured.
const quoteAttempts = 10

// quote fills in the quote and the PCR values that it is about.
func (d *Device) quote(ak loaded, qualifyingData []byte, pcrs []int, out *tpm.Quoted) error {
	for range quoteAttempts {
		values, digest, err := d.readPCRs(pcrs)
		if err != nil {
			return err
		}
		r, err := tpm2.Quote{
			SignHandle:     ak.auth(),
			QualifyingData: tpm2.TPM2BData{Buffer: qualifyingData}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect: selection(pcrs...),
		}.Execute(d.tpm)
		if err != nil {
			return fmt.Errorf("TPM2_Quote: %w", err)
		}
		attest, err := r.Quoted.Contents()
		if err != nil {
			return fmt.Errorf("TPM2_Quote: %w", err)
		}
		info, err := attest.Attested.Quote()
		if err != nil {
			return fmt.Errorf("TPM2_Quote: %w", err)
		}
		if bytes.Equal(info.PCRDigest.Buffer, digest) {
			out.Quote, out.QuoteSignature, out.PCRValues = r.Quoted.Bytes(), tpm2.Marshal(r.Signature), values
			return nil
		}
	}
	return fmt.Errorf("the PCRs changed %d times while they were quoted; try again when fewer programs start", quoteAttempts)
}

// readPCRs returns the values and the digest over them that a quote would have. The TPM reads up to
// eight at once.
func (d *Device) readPCRs(pcrs []int) (values map[int][]byte, digest []byte, err error) {
	values = make(map[int][]byte, len(pcrs))
	for left := pcrs; len(left) > 0; {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(left...)}.Execute(d.tpm)
		if err != nil {
			return nil, nil, fmt.Errorf("TPM2_PCR_Read %v: %w", left, err)
		}
		n := len(r.PCRValues.Digests)
		if n == 0 || n > len(left) || !bytes.Equal(tpm2.Marshal(r.PCRSelectionOut), tpm2.Marshal(selection(left[:n]...))) {
			return nil, nil, fmt.Errorf("TPM2_PCR_Read %v: the TPM has no SHA-256 bank; enable it in the firmware setup", left)
		}
		for i, v := range r.PCRValues.Digests {
			values[left[i]] = v.Buffer
		}
		left = left[n:]
	}
	h := sha256.New()
	for _, n := range pcrs {
		h.Write(values[n])
	}
	return values, h.Sum(nil), nil
}

func selection(pcrs ...int) tpm2.TPMLPCRSelection {
	ns := make([]uint, len(pcrs))
	for i, n := range pcrs {
		ns[i] = uint(n)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(ns...)}}}
}
