// SPDX-License-Identifier: Apache-2.0

package device

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ekProfiles are the endorsement keys that we can use, in order of preference: NV index of the
// certificate and template (TCG EK Credential Profile 2.5, 2.2.1.4, B.3.3 L-1 and B.3.4 L-2).
var ekProfiles = [...]struct {
	nv       tpm2.TPMHandle
	template *tpm2.TPMTPublic
}{
	{0x01c00002, &tpm2.RSAEKTemplate},
	{0x01c0000a, &tpm2.ECCEKTemplate},
}

// nvChunk is what every TPM reads at once (TPM_PT_NV_BUFFER_MAX is at least 512 in practice).
const nvChunk = 512

// findEK takes the first endorsement key that has a certificate, else the RSA one without:
// the one whose hash inventories list. Whether the certificate is for that key is for the
// server to judge.
func (d *Device) findEK() error {
	for _, p := range ekProfiles {
		cert, err := d.readCertificate(p.nv)
		if err != nil {
			return fmt.Errorf("reading the EK certificate in NV 0x%08x: %w", uint32(p.nv), err)
		}
		if cert == nil {
			continue
		}
		if d.ek, err = d.newObject(*p.template); err != nil {
			return fmt.Errorf("making the endorsement key: %w", err)
		}
		d.ekCertificates = [][]byte{cert.Raw}
		return nil
	}
	ek, err := d.newObject(*ekProfiles[0].template)
	if err != nil {
		return fmt.Errorf("making the endorsement key: %w", err)
	}
	d.ek = ek
	return nil
}

// readCertificate returns the certificate in an NV index, or nil if there is no such index.
func (d *Device) readCertificate(index tpm2.TPMHandle) (*x509.Certificate, error) {
	data, err := d.readNV(index)
	if err != nil || data == nil {
		return nil, err
	}
	// Makers pad the index; the certificate tells its own length.
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(data, &outer); err != nil {
		return nil, fmt.Errorf("it holds no certificate: %w", err)
	}
	return x509.ParseCertificate(outer.FullBytes)
}

func (d *Device) readNV(index tpm2.TPMHandle) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_ReadPublic: %w", err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_ReadPublic: %w", err)
	}
	self := tpm2.AuthHandle{Handle: index, Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	auth := self
	if !public.Attributes.AuthRead {
		auth = owner
	}
	data := make([]byte, 0, public.DataSize)
	for len(data) < int(public.DataSize) {
		n := min(nvChunk, int(public.DataSize)-len(data))
		r, err := tpm2.NVRead{
			AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: index, Name: r.NVName},
			Size: uint16(n), Offset: uint16(len(data)),
		}.Execute(d.tpm)
		if errors.Is(err, tpm2.TPMRCNVUninitialized) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("TPM2_NV_Read: %w", err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, errors.New("TPM2_NV_Read: no data")
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}
