// SPDX-License-Identifier: Apache-2.0

package device

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Key is an ECC P-256 key that lives in the TPM: a crypto.Signer for ECDSA with SHA-256, fit
// for TLS 1.3 client authentication and for CSRs. It is safe for concurrent use and takes no
// space in the TPM between uses.
type Key struct {
	device *Device
	object *object
	public *ecdsa.PublicKey
}

// NewKey makes the key that belongs to unique: the same 32 bytes give the same key on the same
// TPM, other bytes another. They are no secret, but random ones make a key that nobody used before.
func (d *Device) NewKey(unique [32]byte) (*Key, error) {
	if unique == [32]byte{} {
		return nil, errors.New("making a TPM key: unique must not be zero")
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	o, err := d.newObject(signingKey(false, unique))
	if err != nil {
		return nil, fmt.Errorf("making a TPM key: %w", err)
	}
	public, err := publicKey(o.public)
	if err != nil {
		return nil, fmt.Errorf("making a TPM key: %w", err)
	}
	ec, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("making a TPM key: the TPM made a %T", public)
	}
	return &Key{device: d, object: o, public: ec}, nil
}

// Public returns the *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs a SHA-256 digest and returns an ASN.1 ECDSA signature. Randomness comes from the
// TPM; the reader is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("signing with a TPM key: %s of %d bytes, only SHA-256 is supported", opts.HashFunc(), len(digest))
	}
	if err := k.device.lock(); err != nil {
		return nil, err
	}
	defer k.device.mu.Unlock()
	var signature []byte
	err := k.device.with([]*object{k.object}, func(l []loaded) (err error) {
		signature, err = k.device.sign(l[0], digest, tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("signing with a TPM key: %w", err)
	}
	return signature, nil
}

// sign signs by the key's own scheme and returns what crypto/x509 calls a signature: PKCS#1 v1.5, or
// ECDSA in ASN.1.
func (d *Device) sign(l loaded, digest []byte, ticket tpm2.TPMTTKHashCheck) ([]byte, error) {
	r, err := tpm2.Sign{
		KeyHandle: l.auth(), Digest: tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Validation: ticket,
	}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_Sign: %w", err)
	}
	if r.Signature.SigAlg == tpm2.TPMAlgRSASSA {
		s, err := r.Signature.Signature.RSASSA()
		if err != nil {
			return nil, fmt.Errorf("TPM2_Sign: %w", err)
		}
		return s.Sig.Buffer, nil
	}
	s, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("TPM2_Sign: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)})
}
