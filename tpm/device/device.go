// SPDX-License-Identifier: Apache-2.0

// Package device speaks to one TPM 2.0 and answers node attestation with it (package tpm).
//
// One Device is one queue: its methods take turns, and between two of them none of our
// objects or sessions is in the TPM. A TPM without a resource manager has three object slots;
// no method needs more.
//
// Every key is a primary key of the endorsement hierarchy, made anew from its template when
// needed: nothing about keys is stored on disk, and nothing can be copied. The attestation key
// is there because attestations by a key of the owner hierarchy hide the reset counters and
// the firmware version (TPM 2.0 Part 1, 31.5).
package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/assay-id/assay/tpm"
)

// Device is an open TPM. It is safe for concurrent use.
type Device struct {
	mu             sync.Mutex // the queue
	tpm            transport.TPMCloser
	ek, ak         *object
	ekCertificates [][]byte
	closed         bool
}

// ErrClosed is returned by a Device, and by its keys, after Close.
var ErrClosed = errors.New("the TPM device is closed")

// Open opens the TPM at "/dev/tpmrm0" or at "unix:/path/of/swtpm.sock", finds its endorsement
// key and makes its attestation key. That takes a second or more with some TPMs.
//
// A socket TPM has no resource manager: Open removes the transient objects and sessions that
// others left, so two programs must not share one.
func Open(ctx context.Context, path string) (*Device, error) {
	t, managed, err := openTransport(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	d := &Device{tpm: t}
	if err := d.start(ctx, managed); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the TPM at %s: %w", path, err), t.Close())
	}
	return d, nil
}

func (d *Device) start(ctx context.Context, managed bool) error {
	if !managed {
		if err := d.sweep(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.findEK(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ak, err := d.newObject(signingKey(true, [32]byte{}))
	if err != nil {
		return fmt.Errorf("making the attestation key: %w", err)
	}
	d.ak = ak
	return nil
}

// Handle ranges that sweep looks into (TPM 2.0 Part 2, 7.2).
const (
	transientObjects = 0x80000000
	loadedSessions   = 0x02000000
	savedSessions    = 0x03000000
)

// sweep flushes what earlier users left in a TPM without resource manager.
func (d *Device) sweep() error {
	for _, first := range [...]uint32{transientObjects, loadedSessions, savedSessions} {
		handles, err := d.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(d.tpm); err != nil {
				return fmt.Errorf("TPM2_FlushContext 0x%08x: %w", uint32(h), err)
			}
		}
	}
	return nil
}

func (d *Device) handles(first uint32) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability: %w", err)
	}
	list, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability: %w", err)
	}
	return list.Handle, nil
}

// lock takes the queue.
func (d *Device) lock() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// Close ends the use of the TPM. Keys of the device can not be used any more.
func (d *Device) Close() error {
	if err := d.lock(); err != nil {
		return nil
	}
	defer d.mu.Unlock()
	d.closed = true
	return d.tpm.Close()
}

// EKHash returns the SHA-256 of the endorsement key's DER SubjectPublicKeyInfo: the name of
// this machine in agent IDs and in inventories.
func (d *Device) EKHash() ([32]byte, error) {
	public, err := publicKey(d.ek.public)
	if err != nil {
		return [32]byte{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encoding the endorsement key: %w", err)
	}
	return sha256.Sum256(spki), nil
}

// Hello returns the opening of an attestation for key.
func (d *Device) Hello(key *Key) (tpm.Hello, error) {
	if key.device != d {
		return tpm.Hello{}, errors.New("the key belongs to another TPM device")
	}
	return tpm.Hello{
		Version:        tpm.Version,
		EKCertificates: d.ekCertificates,
		EKPublic:       d.ek.public,
		AKPublic:       d.ak.public,
		KeyPublic:      key.object.public,
	}, nil
}

// Answer answers a challenge that was made for the Hello of the same key. A challenge for
// another TPM or another attestation key fails in the TPM (TPM_RC_INTEGRITY).
func (d *Device) Answer(key *Key, c tpm.Challenge) (tpm.Evidence, error) {
	if key.device != d {
		return tpm.Evidence{}, errors.New("the key belongs to another TPM device")
	}
	if c.Version != tpm.Version {
		return tpm.Evidence{}, fmt.Errorf("the server speaks version %d of TPM attestation and this agent speaks %d; use an agent that fits the server", c.Version, tpm.Version)
	}
	if err := tpm.CheckPCRs(c.PCRs); err != nil {
		return tpm.Evidence{}, fmt.Errorf("answering the challenge: %w", err)
	}
	if err := d.lock(); err != nil {
		return tpm.Evidence{}, err
	}
	defer d.mu.Unlock()
	e, err := d.answer(key, c)
	if err != nil {
		return tpm.Evidence{}, fmt.Errorf("answering the challenge: %w", err)
	}
	return e, nil
}

func (d *Device) answer(key *Key, c tpm.Challenge) (e tpm.Evidence, err error) {
	spki, err := x509.MarshalPKIXPublicKey(key.public)
	if err != nil {
		return e, fmt.Errorf("encoding the key: %w", err)
	}
	err = d.with([]*object{d.ak, d.ek}, func(l []loaded) error {
		e.Secret, err = d.activate(l[0], l[1], c)
		return err
	})
	if err != nil {
		return e, err
	}
	q := tpm.QualifyingData(c.Nonce, spki, e.Secret)
	err = d.with([]*object{d.ak, key.object}, func(l []loaded) error {
		e.Certify, e.CertifySignature, err = d.certify(l[0], l[1], q)
		return err
	})
	if err != nil {
		return e, err
	}
	err = d.with([]*object{d.ak}, func(l []loaded) error { return d.quote(l[0], q, c.PCRs, &e) })
	return e, err
}

// activate recovers the secret of a credential. The session that carries it is salted to the
// EK, whose certificate the server verifies, and encrypted: a listener on the bus learns nothing.
func (d *Device) activate(ak, ek loaded, c tpm.Challenge) ([]byte, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.public)
	if err != nil {
		return nil, fmt.Errorf("reading the endorsement key: %w", err)
	}
	policy, done, err := tpm2.PolicySession(d.tpm, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	secret, err := d.activateIn(policy, ak, ek, public, c)
	if closing := done(); closing != nil && err == nil && !errors.Is(closing, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("TPM2_FlushContext: %w", closing)
	}
	return secret, err
}

func (d *Device) activateIn(policy tpm2.Session, ak, ek loaded, public *tpm2.TPMTPublic, c tpm.Challenge) ([]byte, error) {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: policy.Handle(), NonceTPM: policy.NonceTPM(),
	}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_PolicySecret: %w", err)
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: ak.auth(),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: policy},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.CredentialBlob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.EncryptedSecret},
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
func (d *Device) quote(ak loaded, qualifyingData []byte, pcrs []int, e *tpm.Evidence) error {
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
			e.Quote, e.QuoteSignature, e.PCRValues = r.Quoted.Bytes(), tpm2.Marshal(r.Signature), values
			return nil
		}
	}
	return fmt.Errorf("the PCRs changed %d times while they were quoted; try again when fewer programs start", quoteAttempts)
}

// readPCRs returns the values and the digest over them that a quote would have.
func (d *Device) readPCRs(pcrs []int) (values map[int][]byte, digest []byte, err error) {
	values = make(map[int][]byte, len(pcrs))
	h := sha256.New()
	for _, n := range pcrs {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(n)}.Execute(d.tpm)
		if err != nil {
			return nil, nil, fmt.Errorf("TPM2_PCR_Read %d: %w", n, err)
		}
		if len(r.PCRValues.Digests) != 1 {
			return nil, nil, fmt.Errorf("TPM2_PCR_Read %d: the TPM has no SHA-256 bank; enable it in the firmware setup", n)
		}
		values[n] = r.PCRValues.Digests[0].Buffer
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

// publicKey reads the key of a TPMT_PUBLIC.
func publicKey(public []byte) (crypto.PublicKey, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, err
	}
	return tpm2.Pub(*p)
}
