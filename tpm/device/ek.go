// SPDX-License-Identifier: Apache-2.0

package device

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
)

// CheckEK says whether a configured kind of endorsement key is known.
func CheckEK(kind string) error {
	if kind == "" || slices.ContainsFunc(tpm.EKProfiles[:], func(p tpm.EKProfile) bool { return p.Kind == kind }) {
		return nil
	}
	return fmt.Errorf("ek %q: write \"rsa2048\", \"ecc256\" or \"ecc384\"", kind)
}

// nvChunk is what every TPM reads at once (TPM_PT_NV_BUFFER_MAX is at least 512 in practice).
const nvChunk = 512

// findEK takes the first endorsement key of the kind ("" is any) that has a certificate, else the first
// without. Whether the certificate is for that key is for the server to judge.
func (d *Device) findEK(kind string) error {
	var first *tpm.EKProfile
	for i := range tpm.EKProfiles {
		p := &tpm.EKProfiles[i]
		if kind != "" && kind != p.Kind {
			continue
		}
		if first == nil {
			first = p
		}
		cert, err := d.readCertificate(p.NV)
		if err != nil {
			return fmt.Errorf("reading the EK certificate in NV 0x%08x: %w", uint32(p.NV), err)
		}
		if cert == nil {
			continue
		}
		chain, err := d.readChain()
		if err != nil {
			return fmt.Errorf("reading the EK certificate's chain in NV: %w", err)
		}
		d.ekCertificates = append([][]byte{cert.Raw}, chain...)
		return d.makeEK(p)
	}
	return d.makeEK(first)
}

func (d *Device) makeEK(p *tpm.EKProfile) (err error) {
	if d.ek, err = d.newObject(p.Template); err != nil {
		return fmt.Errorf("making the endorsement key: %w", err)
	}
	return nil
}

// Where makers may leave the certificates of their CAs: one DER after the other, over as many
// indices as that takes (2.2.1.5.2).
const (
	chainFirst, chainLast = 0x01c00100, 0x01c001ff
	maxChain              = 7 // certificates; tpm.Hello takes 8 with the EK's own
)

// readChain reads the CA certificates that the TPM carries.
func (d *Device) readChain() ([][]byte, error) {
	handles, err := d.handles(chainFirst)
	if err != nil {
		return nil, err
	}
	var data []byte
	for _, h := range handles {
		if h > chainLast {
			break
		}
		part, err := d.readNV(h)
		if err != nil {
			return nil, fmt.Errorf("0x%08x: %w", uint32(h), err)
		}
		data = append(data, part...)
	}
	var chain [][]byte
	for len(chain) < maxChain {
		var outer asn1.RawValue
		rest, err := asn1.Unmarshal(data, &outer)
		if err != nil { // the end, or padding
			break
		}
		if _, err := x509.ParseCertificate(outer.FullBytes); err != nil {
			break
		}
		chain, data = append(chain, outer.FullBytes), rest
	}
	return chain, nil
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
	auth := self
	if !public.Attributes.AuthRead {
		auth = d.owner.auth()
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
