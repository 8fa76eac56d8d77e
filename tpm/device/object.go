// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// object is a primary key of the endorsement hierarchy, or a key that another program made below
// one of the owner hierarchy. It takes no slot in the TPM between uses: its context is saved and
// loaded again, and if the TPM was restarted meanwhile, which makes contexts void, the same key
// comes again from the same template.
type object struct {
	template tpm2.TPMTPublic // of the primary key: this one, or the parent
	private  []byte          // only of a key that has a parent: what that parent alone can read
	password []byte
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
	if o.private != nil {
		return d.loadBelow(o)
	}
	r, err := d.createPrimary(d.endorsement, o.template)
	if err != nil {
		return loaded{}, err
	}
	l := loaded{o, r.ObjectHandle}
	if o.public != nil && !bytes.Equal(o.public, r.OutPublic.Bytes()) {
		return loaded{}, errors.Join(errors.New("the TPM now makes another key from the same template; its endorsement seed was changed, so restart the agent to attest anew"), d.flush(l))
	}
	o.public, o.name = r.OutPublic.Bytes(), r.Name
	return l, d.save(l)
}

// loadBelow gives a key to the TPM by way of its parent, which is made for that moment.
func (d *Device) loadBelow(o *object) (loaded, error) {
	parent, err := d.createPrimary(d.owner, o.template)
	if err != nil {
		return loaded{}, err
	}
	r, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: o.private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](o.public),
	}.Execute(d.tpm)
	flushing := d.flush(loaded{handle: parent.ObjectHandle})
	if err != nil {
		return loaded{}, errors.Join(fmt.Errorf("TPM2_Load: %w", err), flushing)
	}
	o.name = r.Name
	l := loaded{o, r.ObjectHandle}
	if flushing != nil {
		return loaded{}, errors.Join(flushing, d.flush(l))
	}
	return l, d.save(l)
}

// createPrimary makes a primary key.
func (d *Device) createPrimary(h hierarchy, template tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: h.auth(), InPublic: tpm2.New2B(template)}.Execute(d.tpm)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return nil, fmt.Errorf("TPM2_CreatePrimary: the %s hierarchy has another password; clear it (tpm2_changeauth -c %s), or set %s_hierarchy_password if this is for tpm_devid: %w", h.name, h.name[:1], h.name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary: %w", err)
	}
	return r, nil
}

// save keeps the context of a key, whose slot is freed if that fails.
func (d *Device) save(l loaded) error {
	saved, err := tpm2.ContextSave{SaveHandle: l.handle}.Execute(d.tpm)
	if err != nil {
		return errors.Join(fmt.Errorf("TPM2_ContextSave: %w", err), d.flush(l))
	}
	l.context = &saved.Context
	return nil
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

// auth uses the loaded key with its password, which is empty for those that we make.
func (l loaded) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: l.handle, Name: l.name, Auth: tpm2.PasswordAuth(l.password)}
}

// hierarchy is one of the TPM's, with the password that the configuration gives it.
type hierarchy struct {
	name     string
	handle   tpm2.TPMHandle
	password []byte
}

func (h hierarchy) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.handle, Auth: tpm2.PasswordAuth(h.password)}
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
