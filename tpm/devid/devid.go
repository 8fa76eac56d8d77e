// SPDX-License-Identifier: Apache-2.0

// Package devid judges SPIRE's tpm_devid attestation, the server's side of it: a node has a DevID
// certificate (IEEE 802.1AR) whose key lives in the TPM that an EK certificate names.
//
//	agent                                                server
//	Payload {DevID certificates, DevID, EK, AK, certify} ────▶ DevID chain, EK chain, AK certified the DevID key
//	                                                     ◀──── Challenge {nonce; credential for EK and AK}
//	Response {nonce signed by the DevID key; secret}     ────▶ possession; AK lives beside the EK
//
// Messages are JSON with the Go names below, as SPIRE spells them, and standard base64. There is no
// quote: it says which machine, not what it booted. Beyond SPIRE's server this one demands that the
// certificate is for the DevID key that was certified, and that the AK is restricted (else it could
// sign a forged certification).
package devid

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm/structures"
)

// Type is the attestation type in AttestAgent, in agent IDs and in selectors.
const Type = "tpm_devid"

const (
	maxChain     = 8 // certificates
	maxRSABits   = 8192
	nonceSize    = 32
	secretSize   = sha256.Size // the digest of the EK's name algorithm
	extensionSAN = "2.5.29.17"
)

// Roots are whom the server trusts for DevID and for EK certificates.
type Roots struct{ DevID, EK *x509.CertPool }

// Session is one attestation.
type Session struct {
	// Leaf is the DevID certificate, Chains lead from it to a root. Proven only after Finish.
	Leaf   *x509.Certificate
	Chains [][]*x509.Certificate

	nonce, secret []byte
}

// Begin judges the payload, which comes encoded, and returns the encoded challenge. Every error
// is the agent's fault, except those that wrap ErrServer.
func Begin(roots Roots, payload []byte, now time.Time, random io.Reader) (*Session, []byte, error) {
	if roots.DevID == nil || roots.EK == nil {
		return nil, nil, fmt.Errorf("%w: no roots are configured", ErrServer) // nil would mean the system's
	}
	p, err := Decode[Payload](payload)
	if err != nil {
		return nil, nil, err
	}
	s := &Session{nonce: make([]byte, nonceSize), secret: make([]byte, secretSize)}
	if err := s.judgeCertificate(roots.DevID, p.DevIDCert, now); err != nil {
		return nil, nil, fmt.Errorf("DevID certificate: %w", err)
	}
	ek, err := judgeEK(roots.EK, p, now)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	akName, err := s.judgeCertification(p)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot verify that DevID is in the same TPM than AK: %w", err)
	}
	for _, b := range [][]byte{s.nonce, s.secret} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, nil, fmt.Errorf("%w: random: %w", ErrServer, err)
		}
	}
	blob, encrypted, err := ek.MakeCredential(random, tpm2.RSAEKTemplate, akName, s.secret)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: making a credential: %w", ErrServer, err)
	}
	data, err := json.Marshal(Challenge{s.nonce, &Credential{blob, encrypted}})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrServer, err)
	}
	return s, data, nil
}

// ErrServer is wrapped by errors that are not the agent's fault.
var ErrServer = errors.New("the server can not judge")

// Finish judges the encoded response. A session serves once.
func (s *Session) Finish(response []byte) error {
	r, err := Decode[Response](response)
	if err != nil {
		return err
	}
	nonce, secret := s.nonce, s.secret
	s.nonce, s.secret = nil, nil
	if len(nonce) == 0 {
		return errors.New("the challenge was answered before")
	}
	algorithm := x509.ECDSAWithSHA256
	if _, ok := s.Leaf.PublicKey.(*rsa.PublicKey); ok {
		algorithm = x509.SHA256WithRSA
	}
	if err := s.Leaf.CheckSignature(algorithm, nonce, r.DevID); err != nil {
		return fmt.Errorf("devID challenge verification failed: %w", err)
	}
	if subtle.ConstantTimeCompare(secret, r.CredActivation) != 1 {
		return errors.New("credential activation failed: the AK does not live in the TPM of the EK")
	}
	return nil
}

func (s *Session) judgeCertificate(roots *x509.CertPool, chain [][]byte, now time.Time) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("the chain has %d certificates, not 1 to %d", len(chain), maxChain)
	}
	intermediates := x509.NewCertPool()
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return fmt.Errorf("its RSA key has %d bits, more than %d", key.N.BitLen(), maxRSABits)
		}
		if i == 0 {
			s.Leaf = cert
		} else {
			intermediates.AddCert(cert)
		}
	}
	var err error
	s.Chains, err = s.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// ekTemplate is the default RSA key of the TCG EK Credential Profile without its modulus.
var ekTemplate = structures.TemplateOf(tpm2.RSAEKTemplate)

// judgeEK checks that the EK is the one of a certificate under the roots: the default RSA key of
// the TCG EK Credential Profile, as SPIRE's agents use.
func judgeEK(roots *x509.CertPool, p Payload, now time.Time) (*structures.Public, error) {
	ek, err := structures.ParsePublic(p.EKPub)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(ek.Template, ekTemplate) {
		return nil, errors.New("it is not a default RSA EK of the TCG EK Credential Profile")
	}
	cert, err := x509.ParseCertificate(p.EKCert)
	if err != nil {
		return nil, err
	}
	if !sameKey(cert.PublicKey, ek) {
		return nil, errors.New("public key in EK certificate differs from public key created via EK template")
	}
	// The critical subject alternative name holds a directory name only, which crypto/x509 leaves.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, func(id asn1.ObjectIdentifier) bool { return id.String() == extensionSAN })
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return ek, err
}

// judgeCertification checks that the AK, whose name it returns, certified the key of the DevID
// certificate. That the AK is in a TPM is for the credential to show.
func (s *Session) judgeCertification(p Payload) (akName []byte, err error) {
	ak, err := structures.ParsePublic(p.AKPub)
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	key, err := structures.ParsePublic(p.DevIDPub)
	if err != nil {
		return nil, fmt.Errorf("DevID key: %w", err)
	}
	if !sameKey(s.Leaf.PublicKey, key) {
		return nil, errors.New("the DevID certificate is for another key than the DevID key")
	}
	const home = structures.FixedTPM | structures.FixedParent | structures.Sign
	if a := ak.Attributes; !a.Has(home|structures.SensitiveDataOrigin|structures.Restricted) || a.Has(structures.Decrypt) {
		return nil, errors.New("the AK is not a restricted signing key that was made in its TPM and can not leave it")
	}
	if !key.Attributes.Has(home) {
		return nil, errors.New("the DevID key is not a signing key that can not leave its TPM")
	}
	if _, ok := ak.Key.(*rsa.PublicKey); !ok {
		return nil, errors.New("the AK is not an RSA key")
	}
	attest, err := ak.VerifyAttest(p.CertifiedDevID, p.CertificationSignature)
	switch {
	case err != nil:
		return nil, fmt.Errorf("certification: %w", err)
	case attest.Kind != tpm2.TPMSTAttestCertify:
		return nil, errors.New("what the AK signed is not a TPM's certification")
	case !bytes.Equal(key.Name, attest.Name):
		return nil, errors.New("the certification is about another key than the DevID key")
	}
	return ak.Name, nil
}

// sameKey reports whether a certificate and a TPM have the same RSA or ECDSA key.
func sameKey(certified crypto.PublicKey, public *structures.Public) bool {
	k, ok := public.Key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(certified)
}
