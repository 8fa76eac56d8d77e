// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// object is a primary key of the endorsement hierarchy. It takes no slot in the TPM between
// uses: its context is saved and loaded again, and if the TPM was restarted meanwhile, which
// makes contexts void, the same key comes again from the same template.
type object struct {
	template tpm2.TPMTPublic
	public   []byte // TPMT_PUBLIC
	name     tpm2.TPM2BName
	context  *tpm2.TPMSContext
}

// loaded is an object in a slot of the TPM; flush frees the slot.
type loaded struct {
	*object
	handle tpm2.TPMHandle
}

// newObject creates the primary key for a template and saves its context.
func (d *Device) newObject(template tpm2.TPMTPublic) (*object, error) {
	o := &object{template: template}
	l, err := d.create(o)
	if err != nil {
		return nil, err
	}
	return o, d.flush(l)
}

func (d *Device) load(o *object) (loaded, error) {
	r, err := tpm2.ContextLoad{Context: *o.context}.Execute(d.tpm)
	if err == nil {
		return loaded{o, r.LoadedHandle}, nil
	}
	if !isTPMError(err) {
		return loaded{}, fmt.Errorf("TPM2_ContextLoad: %w", err)
	}
	return d.create(o)
}

// create makes the key in the TPM and fills in the object, or checks that it is still the same.
func (d *Device) create(o *object) (loaded, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(o.template)}.Execute(d.tpm)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return loaded{}, fmt.Errorf("TPM2_CreatePrimary: the endorsement hierarchy has a password; clear it (tpm2_changeauth -c e): %w", err)
	}
	if err != nil {
		return loaded{}, fmt.Errorf("TPM2_CreatePrimary: %w", err)
	}
	l := loaded{o, r.ObjectHandle}
	if o.public != nil && !bytes.Equal(o.public, r.OutPublic.Bytes()) {
		return loaded{}, errors.Join(errors.New("the TPM now makes another key from the same template; its endorsement seed was changed, so restart the agent to attest anew"), d.flush(l))
	}
	saved, err := tpm2.ContextSave{SaveHandle: r.ObjectHandle}.Execute(d.tpm)
	if err != nil {
		return loaded{}, errors.Join(fmt.Errorf("TPM2_ContextSave: %w", err), d.flush(l))
	}
	o.public, o.name, o.context = r.OutPublic.Bytes(), r.Name, &saved.Context
	return l, nil
}

func (d *Device) flush(l loaded) error {
	if _, err := (tpm2.FlushContext{FlushHandle: l.handle}).Execute(d.tpm); err != nil {
		return fmt.Errorf("TPM2_FlushContext: %w", err)
	}
	return nil
}

// with runs f while the objects are in the TPM, first to last, and frees their slots.
func (d *Device) with(objects []*object, f func(l []loaded) error) (err error) {
	ls := make([]loaded, 0, len(objects))
	defer func() {
		for _, l := range ls {
			err = errors.Join(err, d.flush(l))
		}
	}()
	for _, o := range objects {
		l, err := d.load(o)
		if err != nil {
			return err
		}
		ls = append(ls, l)
	}
	return f(ls)
}

// auth uses the loaded key with its empty password.
func (l loaded) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: l.handle, Name: l.name, Auth: tpm2.PasswordAuth(nil)}
}

// isTPMError tells an answer of the TPM from a failure to reach it.
func isTPMError(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc)
}

// signingKey is the template of our ECC P-256 keys: in this TPM only, without password and
// outside of dictionary attack protection. A restricted one signs only what the TPM itself made.
func signingKey(restricted bool, unique [32]byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true, Restricted: restricted,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique[:]},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}
