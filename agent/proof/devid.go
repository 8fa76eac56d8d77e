// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/devid"
)

// DevID attests by a DevID certificate whose key lives in the TPM (SPIRE's tpm_devid). The
// certificates are read at each attestation, so that a renewed one counts without a restart. The
// node's SVID is for another key in that TPM.
type DevID struct {
	tpmKey
	devid           *device.DevID
	certificatePath string
	asked           bool
}

// NewDevID takes the file with the DevID certificate, PEM, the leaf first, and its key.
func NewDevID(d *device.Device, key *device.DevID, certificatePath string) (*DevID, error) {
	a := &DevID{tpmKey: tpmKey{device: d}, devid: key, certificatePath: certificatePath}
	_, err := a.certificates() // what is wrong with the file shows at the start
	return a, err
}

// Type returns "tpm_devid".
func (a *DevID) Type() string { return devid.Type }

// Begin makes a new key, and shows the certificates and where the DevID key lives.
func (a *DevID) Begin(context.Context) ([]byte, crypto.Signer, error) {
	certificates, err := a.certificates()
	if err != nil {
		return nil, nil, err
	}
	r, err := a.devid.Residence()
	if err != nil {
		return nil, nil, err
	}
	if err := a.make(); err != nil {
		return nil, nil, err
	}
	payload, err := json.Marshal(devid.Payload{
		DevIDCert: certificates, DevIDPub: r.DevID, EKCert: r.EKCertificate, EKPub: r.EK, AKPub: r.AK,
		CertifiedDevID: r.Certified, CertificationSignature: r.Signature,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encode the DevID: %w", err)
	}
	a.asked = false
	return payload, a.key, nil
}

// certificates reads the file and checks that it is for the key.
func (a *DevID) certificates() ([][]byte, error) {
	chain, err := readCertificates(a.certificatePath)
	if err != nil {
		return nil, fmt.Errorf("tpm_devid: devid_cert_path: %w", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("tpm_devid: devid_cert_path %s: %w", a.certificatePath, err)
	}
	key, ok := a.devid.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("tpm_devid: the first certificate in devid_cert_path %s is for another key than that of devid_pub_path", a.certificatePath)
	}
	return chain, nil
}

// Answer proves possession of the DevID key, and that its AK lives beside the EK.
func (a *DevID) Answer(_ context.Context, challenge, _ []byte) ([]byte, error) {
	c, err := devid.Decode[devid.Challenge](challenge)
	switch {
	case err != nil:
		return nil, err
	case c.CredActivation == nil:
		return nil, errors.New("the server sent no credential to activate")
	case a.asked:
		return nil, errors.New("the server sent two challenges, and tpm_devid has one")
	}
	a.asked = true
	signature, secret, err := a.devid.Answer(c.DevID, c.CredActivation.Credential, c.CredActivation.Secret)
	if err != nil {
		return nil, err
	}
	return json.Marshal(devid.Response{DevID: signature, CredActivation: secret})
}
