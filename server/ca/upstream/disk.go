// SPDX-License-Identifier: Apache-2.0

// Package upstream holds the authorities that may certify ours.
package upstream

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
)

// Disk is a CA in PEM files. They are read again for each certificate, so that replacing them
// replaces the CA from the next authority on.
type Disk struct {
	TrustDomain spiffeid.TrustDomain
	// CertPath is the CA's certificate, then those between it and the root; KeyPath its key.
	CertPath, KeyPath string
	// BundlePath holds the roots; without it the CA's certificate is the root.
	BundlePath string
	Now        func() time.Time
}

// Check reads the files and reports what is wrong with them.
func (d *Disk) Check() error {
	_, _, err := d.read()
	return err
}

// MintCA certifies the key of the CSR, under the CSR's subject, for our trust domain.
func (d *Disk) MintCA(_ context.Context, csr []byte, ttl time.Duration) (chain, roots []*x509.Certificate, err error) {
	authority, roots, err := d.read()
	if err != nil {
		return nil, nil, err
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the CSR: %w", err)
	}
	chain, err = authority.CA(&mint.Shape{TrustDomain: d.TrustDomain}, request.Subject, request.PublicKey, d.Now(), ttl)
	return chain, roots, err
}

// read reads the files as they are now.
func (d *Disk) read() (*mint.Authority, []*x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(d.CertPath, d.KeyPath)
	if err != nil {
		return nil, nil, fmt.Errorf("the upstream CA's certificate and key: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%s: a key of type %T can not sign", d.KeyPath, pair.PrivateKey)
	}
	a := &mint.Authority{Key: key, NotAfter: pair.Leaf.NotAfter}
	for _, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", d.CertPath, err)
		}
		a.Chain = append(a.Chain, cert)
	}
	if own := a.Chain[0]; !own.IsCA || own.KeyUsage != 0 && own.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, nil, fmt.Errorf("%s: its first certificate is not that of a CA", d.CertPath)
	}
	a.Root = selfSigned(a.Chain[0])
	roots, err := d.roots(a)
	if err != nil {
		return nil, nil, err
	}
	return a, roots, d.verify(a, roots)
}

func selfSigned(cert *x509.Certificate) bool {
	return string(cert.RawSubject) == string(cert.RawIssuer) && cert.CheckSignatureFrom(cert) == nil
}

func (d *Disk) roots(a *mint.Authority) ([]*x509.Certificate, error) {
	if d.BundlePath == "" {
		if !a.Root || len(a.Chain) != 1 {
			return nil, fmt.Errorf("%s is not one self-signed certificate: set bundle_file_path to the file of its root", d.CertPath)
		}
		return a.Chain, nil
	}
	data, err := os.ReadFile(d.BundlePath)
	if err != nil {
		return nil, fmt.Errorf("the upstream's roots: %w", err)
	}
	var roots []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.BundlePath, err)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s holds no PEM certificate", d.BundlePath)
	}
	return roots, nil
}

func (d *Disk) verify(a *mint.Authority, roots []*x509.Certificate) error {
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		anchors.AddCert(root)
	}
	for _, cert := range a.Chain[1:] {
		between.AddCert(cert)
	}
	_, err := a.Chain[0].Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: d.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("%s does not chain up to its roots: %w", d.CertPath, err)
	}
	return nil
}

// Publish is not for a CA in files.
func (d *Disk) Publish(context.Context, bundle.Kind, bundle.KeyAuthority) ([]bundle.KeyAuthority, error) {
	return nil, errors.ErrUnsupported
}

// Watch returns nil: the files are read when they are needed.
func (d *Disk) Watch(context.Context) <-chan bundle.Trusted { return nil }
