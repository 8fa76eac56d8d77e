// SPDX-License-Identifier: Apache-2.0

package device

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/octets"
)

// ErrOtherState is returned by Unseal where the PCRs are not what they were at Seal.
var ErrOtherState = errors.New("the machine has booted something else since (the PCRs differ), or other PCRs were asked for")

// maxSealed is what a TPM can seal at least in one object (TPM 2.0 Part 2, 11.1.15: MAX_SYM_DATA).
const maxSealed = 128

// Seal encrypts a secret of up to 128 bytes so that only this TPM opens it, and only while these PCRs (SHA-256 bank,
// ascending) have the values that they have now: another machine can not, nor this one when it has booted something else.
// Any program of this boot that may use the TPM can. On the bus to the TPM the secret is encrypted.
func (d *Device) Seal(pcrs []int, secret []byte) ([]byte, error) {
	if err := tpm.CheckPCRs(pcrs); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if len(secret) == 0 || len(secret) > maxSealed {
		return nil, fmt.Errorf("sealing: a secret of %d bytes, 1 to %d are possible", len(secret), maxSealed)
	}
	var sealed []byte
	err := d.withStorageKey(func(parent loaded, public tpm2.TPMTPublic) error {
		_, digest, err := d.readPCRs(pcrs)
		if err != nil {
			return err
		}
		policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
		if err != nil {
			return err
		}
		if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: digest}, Pcrs: selection(pcrs...)}).Update(policy); err != nil {
			return err
		}
		r, err := tpm2.Create{
			ParentHandle: parent.auth(),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				// Neither UserWithAuth nor AdminWithPolicy: the policy is the only way in.
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
				AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy.Hash().Digest},
			}),
		}.Execute(d.tpm, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(parent.handle, public), tpm2.AESEncryption(128, tpm2.EncryptIn)))
		if err != nil {
			return fmt.Errorf("TPM2_Create: %w", err)
		}
		sealed = withSize(withSize(nil, r.OutPrivate.Buffer), r.OutPublic.Bytes())
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return sealed, nil
}

// Unseal returns what Seal was given with the same PCRs. What another TPM sealed, or nobody, is an error; ErrOtherState is
// wrapped where the machine's state is another.
func (d *Device) Unseal(pcrs []int, sealed []byte) ([]byte, error) {
	if err := tpm.CheckPCRs(pcrs); err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	r := octets.Big(sealed)
	private, public := r.Sized16(1<<12), r.Sized16(1<<12)
	if !r.Done() {
		return nil, errors.New("unsealing: what is there is not whole")
	}
	var secret []byte
	err := d.withStorageKey(func(parent loaded, parentPublic tpm2.TPMTPublic) error {
		r, err := tpm2.Load{
			ParentHandle: parent.auth(), InPrivate: tpm2.TPM2BPrivate{Buffer: private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](public),
		}.Execute(d.tpm)
		if err != nil {
			return fmt.Errorf("TPM2_Load, of what this TPM did not seal: %w", err)
		}
		secret, err = d.unseal(r.ObjectHandle, r.Name, pcrs, tpm2.Salted(parent.handle, parentPublic))
		return errors.Join(err, d.flush(loaded{handle: r.ObjectHandle}))
	})
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		err = fmt.Errorf("%w: %w", ErrOtherState, err)
	}
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return secret, nil
}

// unseal tries again while IMA extends its PCR meanwhile: TPMs count changes of all PCRs together (Part 1, 19.7.7.6).
func (d *Device) unseal(object tpm2.TPMHandle, name tpm2.TPM2BName, pcrs []int, salted tpm2.AuthOption) (secret []byte, err error) {
	for range quoteAttempts {
		secret, err = d.unsealOnce(object, name, pcrs, salted)
		if !errors.Is(err, tpm2.TPMRCPCRChanged) {
			break
		}
	}
	return secret, err
}

func (d *Device) unsealOnce(object tpm2.TPMHandle, name tpm2.TPM2BName, pcrs []int, salted tpm2.AuthOption) (secret []byte, err error) {
	policy, done, err := tpm2.PolicySession(d.tpm, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	defer func() { // a session that served is gone
		if closing := done(); closing != nil && err == nil && !errors.Is(closing, tpm2.TPMRCHandle) {
			secret, err = nil, fmt.Errorf("TPM2_FlushContext: %w", closing)
		}
	}()
	if _, err := (tpm2.PolicyPCR{PolicySession: policy.Handle(), Pcrs: selection(pcrs...)}).Execute(d.tpm); err != nil {
		return nil, fmt.Errorf("TPM2_PolicyPCR: %w", err)
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object, Name: name, Auth: policy}}.Execute(d.tpm,
		tpm2.HMAC(tpm2.TPMAlgSHA256, 16, salted, tpm2.AESEncryption(128, tpm2.EncryptOut)))
	if err != nil {
		return nil, fmt.Errorf("TPM2_Unseal: %w", err)
	}
	return r.OutData.Buffer, nil
}

// withStorageKey runs f while the key that Seal seals to is in the TPM. It is made for that moment, of the endorsement
// hierarchy as all of ours.
func (d *Device) withStorageKey(f func(l loaded, public tpm2.TPMTPublic) error) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	key, err := d.newObject(tpm2.ECCSRKTemplate)
	if err != nil {
		return fmt.Errorf("making the storage key: %w", err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](key.public)
	if err != nil {
		return fmt.Errorf("reading the storage key: %w", err)
	}
	return d.with([]*object{key}, func(l []loaded) error { return f(l[0], *public) })
}

func withSize(out, part []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(part))), part...)
}
