// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/assay-id/assay/proto/x509pop"
)

// X509POP attests by a certificate that the node already has (SPIRE's x509pop). The files are read
// at each attestation, so that a new certificate counts without a restart. The node's SVID is for
// a key of its own.
type X509POP struct {
	softKey
	// CertificatePath is PEM, the node's own certificate first; PrivateKeyPath is PEM with its RSA or
	// ECDSA key. IntermediatesPath, PEM, may be empty.
	CertificatePath, PrivateKeyPath, IntermediatesPath string

	proof crypto.Signer // of the certificate under attestation
}

// Type returns "x509pop".
func (x *X509POP) Type() string { return x509pop.Type }

// Begin sends the certificates.
func (x *X509POP) Begin(context.Context) ([]byte, crypto.Signer, error) {
	pair, err := x.Load()
	if err != nil {
		return nil, nil, err
	}
	x.proof = pair.PrivateKey.(crypto.Signer) // tls takes no other keys
	payload, err := json.Marshal(x509pop.Payload{Certificates: pair.Certificate})
	if err != nil {
		return nil, nil, fmt.Errorf("encode the certificates: %w", err)
	}
	key, err := x.make()
	return payload, key, err
}

// Load reads the files and checks that key and certificate are a pair.
func (x *X509POP) Load() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(x.CertificatePath, x.PrivateKeyPath)
	if err != nil {
		return pair, fmt.Errorf("x509pop: certificate_path %s with private_key_path %s: %w", x.CertificatePath, x.PrivateKeyPath, err)
	}
	if x.IntermediatesPath == "" {
		return pair, nil
	}
	more, err := readCertificates(x.IntermediatesPath)
	if err != nil {
		return pair, fmt.Errorf("x509pop: intermediates_path: %w", err)
	}
	pair.Certificate = append(pair.Certificate, more...)
	return pair, nil
}

// readCertificates reads the PEM certificates in a file, at least one.
func readCertificates(path string) (ders [][]byte, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			ders = append(ders, block.Bytes)
		}
	}
	if len(ders) == 0 {
		return nil, fmt.Errorf("%s holds no PEM certificates", path)
	}
	return ders, nil
}

// Answer proves possession of the certificate's key.
func (x *X509POP) Answer(_ context.Context, challenge, _ []byte) ([]byte, error) {
	c, err := x509pop.Decode[x509pop.Challenge](challenge)
	if err != nil {
		return nil, err
	}
	if x.proof == nil {
		return nil, errors.New("the server sent two challenges, and x509pop has one")
	}
	r, err := x509pop.Respond(x.proof, c, rand.Reader)
	if err != nil {
		return nil, err
	}
	x.proof = nil
	return json.Marshal(r)
}
