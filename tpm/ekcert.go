// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// oidRSAESOAEP marks the RSA key of an EK certificate as fit for OAEP only (RFC 4055, 4.1).
var oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}

// EKCertificateKey returns the public key of an EK certificate. Some makers mark it
// RSAES-OAEP, which crypto/x509 does not read.
func EKCertificateKey(cert *x509.Certificate) (crypto.PublicKey, error) {
	if cert.PublicKey != nil {
		return cert.PublicKey, nil
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, fmt.Errorf("reading the key of an EK certificate: %w", err)
	} else if len(rest) != 0 || !spki.Algorithm.Algorithm.Equal(oidRSAESOAEP) {
		return nil, errors.New("reading the key of an EK certificate: its algorithm is not known")
	}
	key, err := x509.ParsePKCS1PublicKey(spki.Key.RightAlign())
	if err != nil {
		return nil, fmt.Errorf("reading the key of an EK certificate: %w", err)
	}
	return key, nil
}
