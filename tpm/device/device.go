// SPDX-License-Identifier: Apache-2.0

// Package device speaks to one TPM 2.0 and answers node attestation with it (package tpm).
//
// One Device is one queue: its methods take turns, and between two of them none of our
// objects or sessions is in the TPM. A TPM without a resource manager has three object slots;
// no method needs more.
//
// Every key but a DevID is a primary key of the endorsement hierarchy, made anew from its template
// when needed: nothing about keys is stored on disk, and nothing can be copied. The attestation key
// is there because attestations by a key of the owner hierarchy hide the reset counters and
// the firmware version (TPM 2.0 Part 1, 31.5).
package device

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/assay-id/assay/tpm"
)

// Config says which TPM to use, and how.
type Config struct {
	// Path is "/dev/tpmrm0" or "unix:/path/of/swtpm.sock".
	Path string
	// EK is the endorsement key that names the machine: "rsa2048", "ecc256" or "ecc384"; "" takes the
	// first of tpm.EKProfiles that has a certificate.
	EK string
	// OwnerPassword and EndorsementPassword are of the hierarchies; most TPMs have none.
	OwnerPassword, EndorsementPassword string
	// Logs that go with the TPM; nil means MachineLogs(Path).
	Logs *Logs
	// Observe is told of each command and how long it took; it may be nil.
	Observe func(command []byte, took time.Duration)
}

// Device is an open TPM. It is safe for concurrent use.
type Device struct {
	logs               Logs
	program            programDigest
	mu                 sync.Mutex // the queue
	tpm                transport.TPMCloser
	owner, endorsement hierarchy
	ek, ak             *object
	ekCertificates     [][]byte
	closed             bool
}

// ErrClosed is returned by a Device, and by its keys, after Close.
var ErrClosed = errors.New("the TPM device is closed")

// Open opens a TPM, finds its endorsement key and makes its attestation key. That takes a second
// or more with some TPMs.
//
// A socket TPM has no resource manager: Open removes the transient objects and sessions that
// others left, so two programs must not share one.
func Open(ctx context.Context, c Config) (*Device, error) {
	if err := CheckEK(c.EK); err != nil {
		return nil, err
	}
	t, managed, err := openTransport(c.Path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	if c.Observe != nil {
		t = &observed{t, c.Observe}
	}
	d := &Device{
		tpm: t, logs: MachineLogs(c.Path),
		owner:       hierarchy{"owner", tpm2.TPMRHOwner, []byte(c.OwnerPassword)},
		endorsement: hierarchy{"endorsement", tpm2.TPMRHEndorsement, []byte(c.EndorsementPassword)},
	}
	if c.Logs != nil {
		d.logs = *c.Logs
	}
	if err := d.start(ctx, managed, c.EK); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the TPM at %s: %w", c.Path, err), t.Close())
	}
	return d, nil
}

func (d *Device) start(ctx context.Context, managed bool, ek string) error {
	if !managed {
		if err := d.sweep(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.findEK(ek); err != nil {
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

// publicKey reads the key of a TPMT_PUBLIC.
func publicKey(public []byte) (crypto.PublicKey, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, err
	}
	return tpm2.Pub(*p)
}
