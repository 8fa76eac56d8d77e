// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
)

// DefaultPCRs is the quoted selection when a policy names none: firmware and boot loader (0-7),
// commands, files and kernel command line (8, 9, 11, 12, 14), IMA (10).
var DefaultPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}

// Inventory knows the TPMs that operators listed.
type Inventory interface {
	// Known reports whether the EK with that hash of its DER SubjectPublicKeyInfo is listed.
	Known(ek selectors.Digest) bool
}

// Policy says which TPMs are let in. An EK needs a certificate under EKRoots, or a place in
// AllowedEKs or Inventory; either will do.
type Policy struct {
	// EKRoots are the CAs of TPM makers. Nil trusts none (not the system's roots).
	EKRoots *x509.CertPool
	// EKIntermediates help to build paths; TPMs seldom carry them.
	EKIntermediates *x509.CertPool
	// AllowedEKs are listed in the configuration: SHA-256 of the EK's DER SubjectPublicKeyInfo.
	AllowedEKs map[selectors.Digest]bool
	// Inventory lists more of them, and changes; may be nil.
	Inventory Inventory
	// Pending goes on with a TPM that nobody vouches for, and says so in Verdict.Unvouched.
	Pending bool
	// PCRs of the SHA-256 bank to quote, ascending; empty means DefaultPCRs. 16 to 23 are refused:
	// software can reset them.
	PCRs []int
}

func (p *Policy) pcrs() ([]int, error) {
	if len(p.PCRs) == 0 {
		return DefaultPCRs, nil
	}
	if err := tpm.CheckPCRs(p.PCRs); err != nil {
		return nil, err
	}
	if last := p.PCRs[len(p.PCRs)-1]; last > 15 {
		return nil, fmt.Errorf("PCR %d can be reset by software and proves nothing; quote PCRs 0 to 15", last)
	}
	return p.PCRs, nil
}

// LoadPolicy makes a policy from configuration: a PEM file with the certificates of TPM makers'
// CAs ("" for none), and EK hashes in hexadecimal. Self-signed certificates become roots, the
// others intermediates; a file without a self-signed one makes roots of all.
func LoadPolicy(caPath string, ekHashes []string) (*Policy, error) {
	p := &Policy{AllowedEKs: map[selectors.Digest]bool{}}
	for _, text := range ekHashes {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != len(selectors.Digest{}) {
			return nil, fmt.Errorf("ek_hashes: %q is not a SHA-256 in 64 hexadecimal digits; a refused attestation names the hash of its TPM", text)
		}
		p.AllowedEKs[selectors.Digest(b)] = true
	}
	if caPath != "" {
		if err := p.loadCAs(caPath); err != nil {
			return nil, fmt.Errorf("ek_ca_path: %w", err)
		}
	}
	return p, nil
}

func (p *Policy) loadCAs(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var roots, others []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s holds a %s; only certificates belong there", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			roots = append(roots, cert)
		} else {
			others = append(others, cert)
		}
	}
	if len(roots) == 0 {
		roots, others = others, nil
	}
	if len(roots) == 0 {
		return fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	p.EKRoots, p.EKIntermediates = x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		p.EKRoots.AddCert(c)
	}
	for _, c := range others {
		p.EKIntermediates.AddCert(c)
	}
	return nil
}
