// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assay-id/assay/selectors"
)

// OIDs of the TCG EK Credential Profile 2.5, sections 3.1 and 3.2.
var (
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	// oidRSAESOAEP marks an RSA key as fit for OAEP only (RFC 4055, 4.1).
	oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// maxNameText bounds a text of the subject alternative name, in bytes.
const maxNameText = 128

// parseEKCertificate reads an EK certificate and checks its profile; not yet its path.
func parseEKCertificate(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if cert.IsCA {
		return nil, errors.New("it is a CA certificate")
	}
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return nil, errors.New("it lacks the extended key usage tcg-kp-EKCertificate (2.23.133.8.1)")
	}
	return cert, nil
}

// verifyPath checks the certificate's path to a root of the policy. It alters
// cert.UnhandledCriticalExtensions: the subject alternative name of an EK certificate is
// critical and holds only a directory name, which crypto/x509 leaves to us.
func verifyPath(cert *x509.Certificate, chain [][]byte, p *Policy, now time.Time) error {
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	intermediates := x509.NewCertPool()
	if p.EKIntermediates != nil {
		intermediates = p.EKIntermediates.Clone()
	}
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("an intermediate certificate: %w", err)
		}
		intermediates.AddCert(c)
	}
	roots := p.EKRoots
	if roots == nil {
		roots = x509.NewCertPool() // nil would mean the system's roots
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// describe copies into the facts what the certificate says; call it for a verified path only.
func describe(cert *x509.Certificate, f *selectors.NodeFacts) error {
	f.EKIssuer = sha256.Sum256(cert.RawIssuer)
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		names, err := directoryName(e.Value)
		if err != nil {
			return fmt.Errorf("its subject alternative name: %w", err)
		}
		for _, a := range names {
			text, ok := a.Value.(string)
			if !ok || len(text) > maxNameText {
				continue
			}
			switch {
			case a.Type.Equal(oidTPMManufacturer):
				f.Manufacturer = text
			case a.Type.Equal(oidTPMModel):
				f.Model = text
			case a.Type.Equal(oidTPMVersion):
				f.Version = text
			}
		}
	}
	return nil
}

// directoryName returns the attributes of the directory names in a GeneralNames structure
// (RFC 5280, 4.2.1.6: tag 4, explicit). Makers put the three TPM attributes into one RDN or
// into three.
func directoryName(generalNames []byte) ([]pkix.AttributeTypeAndValue, error) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(generalNames, &names); err != nil {
		return nil, err
	} else if len(rest) != 0 {
		return nil, errors.New("bytes follow it")
	}
	var out []pkix.AttributeTypeAndValue
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
			continue
		}
		var rdns pkix.RDNSequence
		if rest, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil {
			return nil, err
		} else if len(rest) != 0 {
			return nil, errors.New("bytes follow a directory name")
		}
		for _, set := range rdns {
			out = append(out, set...)
		}
	}
	return out, nil
}

// ekHash returns the SHA-256 of a public key's DER SubjectPublicKeyInfo.
func ekHash(public crypto.PublicKey) (selectors.Digest, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return selectors.Digest{}, err
	}
	return sha256.Sum256(spki), nil
}

// certificateKey returns the public key of an EK certificate. Some makers mark it
// RSAES-OAEP, which crypto/x509 does not read.
func certificateKey(cert *x509.Certificate) (crypto.PublicKey, error) {
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
