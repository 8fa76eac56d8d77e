// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// DevID is a key that was provisioned below this TPM's storage root key (IEEE 802.1AR), with the
// attestation key that vouches for it. It is safe for concurrent use and takes no space in the TPM
// between uses.
type DevID struct {
	device  *Device
	key, ak *object
	public  crypto.PublicKey
}

// Residence says which TPM a DevID key lives in, once its AK proves by a credential that it lives
// beside the EK. Public keys are TPMT_PUBLIC.
type Residence struct {
	EKCertificate []byte // DER
	EK, AK, DevID []byte
	// Certified (TPMS_ATTEST) and Signature (TPMT_SIGNATURE, RSASSA with SHA-256) are the AK's word on
	// the DevID key.
	Certified, Signature []byte
}

// DevID loads a key that SPIRE's tpm_devid can attest by: RSA or ECC, made by TPM2_Create below the
// storage root key of its kind (the H-1 or H-2 template of the TCG EK Credential Profile 2.5), to sign by
// RSASSA or ECDSA with SHA-256. The blobs may have their TPM2B sizes, as tpm2-tools write them, or not,
// as SPIRE reads them. The password is tried once, and not if the TPM is near to its lockout.
//
// The Device must have been opened for an EK of kind "rsa2048".
func (d *Device) DevID(public, private []byte, password string) (*DevID, error) {
	if len(d.ekCertificates) == 0 || !bytes.Equal(tpm2.Marshal(d.ek.template), tpm2.Marshal(tpm2.RSAEKTemplate)) {
		return nil, errors.New("the TPM has no certificate for its default RSA endorsement key (NV 0x01c00002), and tpm_devid knows a TPM by that; use x509pop or tpm")
	}
	key, area, err := devidObject(withoutSize(public), withoutSize(private), password)
	if err != nil {
		return nil, fmt.Errorf("the DevID key: %w", err)
	}
	k := &DevID{device: d, key: key}
	if k.public, err = publicKey(key.public); err != nil {
		return nil, fmt.Errorf("the DevID key: %w", err)
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	if k.ak, err = d.newObject(rsaAttestationKey()); err != nil {
		return nil, fmt.Errorf("making an attestation key: %w", err)
	}
	if err := d.tryDevID(k, area.ObjectAttributes.NoDA); err != nil {
		return nil, fmt.Errorf("loading the DevID key: %w", err)
	}
	return k, nil
}

// withoutSize leaves out the size that a TPM2B begins with. No TPMT_PUBLIC and no private part
// begins with two bytes that are its own length less two.
func withoutSize(blob []byte) []byte {
	if len(blob) >= 2 && int(binary.BigEndian.Uint16(blob)) == len(blob)-2 {
		return blob[2:]
	}
	return blob
}

// devidObject judges the blobs before a TPM sees them.
func devidObject(public, private []byte, password string) (*object, *tpm2.TPMTPublic, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*p), public) {
		return nil, nil, errors.New("its public part is no TPMT_PUBLIC, as tpm2_create -u writes it")
	}
	if len(private) == 0 {
		return nil, nil, errors.New("its private part is empty; tpm2_create -r writes one")
	}
	if !p.ObjectAttributes.SignEncrypt {
		return nil, nil, errors.New("it can not sign; make it with the attribute sign")
	}
	o := &object{public: public, private: private, password: []byte(password)}
	switch p.Type {
	case tpm2.TPMAlgRSA:
		o.template = tpm2.RSASRKTemplate
	case tpm2.TPMAlgECC:
		o.template = tpm2.ECCSRKTemplate
	default:
		return nil, nil, fmt.Errorf("it is neither RSA nor ECC (0x%04x)", uint16(p.Type))
	}
	if !signsWithSHA256(p) {
		return nil, nil, errors.New("its scheme is not RSASSA or ECDSA with SHA-256, which tpm_devid needs; make it with tpm2_create -G rsa2048:rsassa-sha256:null, or ecc256:ecdsa-sha256:null")
	}
	o.template.Unique = tpm2.TPMUPublicID{} // the high range
	return o, p, nil
}

// signsWithSHA256 tells whether a key signs by RSASSA or ECDSA with SHA-256 and in no other way.
func signsWithSHA256(p *tpm2.TPMTPublic) bool {
	if p.Type == tpm2.TPMAlgRSA {
		parameters, err := p.Parameters.RSADetail()
		if err != nil || parameters.Scheme.Scheme != tpm2.TPMAlgRSASSA {
			return false
		}
		s, err := parameters.Scheme.Details.RSASSA()
		return err == nil && s.HashAlg == tpm2.TPMAlgSHA256
	}
	parameters, err := p.Parameters.ECCDetail()
	if err != nil || parameters.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return false
	}
	s, err := parameters.Scheme.Details.ECDSA()
	return err == nil && s.HashAlg == tpm2.TPMAlgSHA256
}

// tryDevID loads the key and uses its password.
func (d *Device) tryDevID(k *DevID, harmless bool) error {
	if !harmless {
		if err := d.farFromLockout(); err != nil {
			return err
		}
	}
	l, err := d.create(k.key)
	switch {
	case errors.Is(err, tpm2.TPMRCIntegrity):
		return fmt.Errorf("it was not made below this TPM's storage root key, or the TPM was cleared since; provision a DevID for this TPM: %w", err)
	case err != nil:
		return err
	}
	if err := d.flush(l); err != nil {
		return err
	}
	_, _, err = k.certify()
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
		return fmt.Errorf("its password is another one; set devid_password: %w", err)
	}
	return err
}

// farFromLockout refuses to try a password when half of the failures that a TPM allows are used up: an
// agent that is started again and again must not lock the machine's TPM (TPM 2.0 Part 1, 19.8).
func (d *Device) farFromLockout() error {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 2}.Execute(d.tpm)
	if err != nil {
		return fmt.Errorf("TPM2_GetCapability: %w", err)
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil || len(list.TPMProperty) != 2 {
		return errors.New("TPM2_GetCapability: the TPM does not tell how near it is to its lockout")
	}
	failed, most := list.TPMProperty[0].Value, list.TPMProperty[1].Value
	if failed > 0 && 2*failed >= most {
		return fmt.Errorf("the TPM counts %d failed authorizations and locks itself at %d: set the right devid_password, and wait until the TPM forgets them or run tpm2_dictionarylockout --clear-lockout", failed, most)
	}
	return nil
}

// rsaAttestationKey is signingKey(true) for verifiers that know RSA only.
func rsaAttestationKey() tpm2.TPMTPublic {
	t := signingKey(true, [32]byte{})
	t.Type = tpm2.TPMAlgRSA
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: tpm2.TPMTRSAScheme{
		Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
	}})
	t.Unique = tpm2.TPMUPublicID{}
	return t
}

// Public returns the *rsa.PublicKey or *ecdsa.PublicKey.
func (k *DevID) Public() crypto.PublicKey { return k.public }

// Residence has the AK certify the key. There is no nonce in it: it is the credential that is fresh.
func (k *DevID) Residence() (Residence, error) {
	if err := k.device.lock(); err != nil {
		return Residence{}, err
	}
	defer k.device.mu.Unlock()
	certified, signature, err := k.certify()
	if err != nil {
		return Residence{}, fmt.Errorf("certifying the DevID key: %w", err)
	}
	return Residence{EKCertificate: k.device.ekCertificates[0], EK: k.device.ek.public, AK: k.ak.public, DevID: k.key.public, Certified: certified, Signature: signature}, nil
}

func (k *DevID) certify() (certified, signature []byte, err error) {
	err = k.device.with([]*object{k.ak, k.key}, func(l []loaded) error {
		certified, signature, err = k.device.certify(l[0], l[1], nil)
		return err
	})
	return certified, signature, err
}

// nonceSize is the only size of what the key signs, in bytes: no message of another protocol is so
// short.
const nonceSize = 32

// Answer signs a nonce with the DevID key, and recovers the secret of a credential for EK and AK, whose
// parts come without TPM2B sizes.
func (k *DevID) Answer(nonce, credential, encrypted []byte) (signature, secret []byte, err error) {
	if len(nonce) != nonceSize {
		return nil, nil, fmt.Errorf("answering with a DevID: a nonce of %d bytes, not %d, is not signed", len(nonce), nonceSize)
	}
	d := k.device
	if err := d.lock(); err != nil {
		return nil, nil, err
	}
	defer d.mu.Unlock()
	err = d.with([]*object{k.ak, d.ek}, func(l []loaded) error {
		secret, err = d.activate(l[0], l[1], credential, encrypted)
		return err
	})
	if err == nil {
		err = d.with([]*object{k.key}, func(l []loaded) error {
			// The TPM hashes, so that a restricted key signs, too.
			h, err := tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: nonce}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHEndorsement}.Execute(d.tpm)
			if err != nil {
				return fmt.Errorf("TPM2_Hash: %w", err)
			}
			signature, err = d.sign(l[0], h.OutHash.Buffer, h.Validation)
			return err
		})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("answering with a DevID: %w", err)
	}
	return signature, secret, nil
}
