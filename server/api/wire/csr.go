// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/entries"
)

// ReadCSR checks that the caller holds the key; nothing but the key is used.
func ReadCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 {
		return nil, status.Error(codes.InvalidArgument, "missing CSR")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "malformed CSR: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "invalid CSR signature: %v", err)
	}
	return csr, nil
}

// ReadPublicKey reads the key of a WIT-SVID's holder, PKIX.
func ReadPublicKey(der []byte) (crypto.PublicKey, error) {
	if len(der) == 0 {
		return nil, status.Error(codes.InvalidArgument, "missing public key")
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "malformed public key: %v", err)
	}
	return key, nil
}

// ReadMintCSR also reads what an operator's CSR asks for: one ID, and DNS names.
func ReadMintCSR(td spiffeid.TrustDomain, der []byte) (*x509.CertificateRequest, spiffeid.ID, error) {
	csr, err := ReadCSR(der)
	if err != nil {
		return nil, spiffeid.ID{}, err
	}
	if len(csr.URIs) != 1 {
		return nil, spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "CSR must have exactly one URI SAN; it has %d", len(csr.URIs))
	}
	id, err := spiffeid.FromURI(csr.URIs[0])
	if err == nil {
		err = checkWorkload(td, id)
	}
	if err != nil {
		return nil, spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "CSR URI SAN is invalid: %v", err)
	}
	if err := checkDNSNames(csr.DNSNames); err != nil {
		return nil, spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "CSR DNS name is invalid: %v", err)
	}
	return csr, id, nil
}

// checkDNSNames refuses bad names, and a name that a wildcard beside it already covers.
func checkDNSNames(names []string) error {
	for _, name := range names {
		if err := entries.ValidateDNSName(name); err != nil {
			return err
		}
		if _, parent, ok := strings.Cut(name, "."); ok && !strings.HasPrefix(name, "*.") && slices.Contains(names, "*."+parent) {
			return fmt.Errorf("name %q is already covered by wildcard %q", name, "*."+parent)
		}
	}
	return nil
}
