// SPDX-License-Identifier: Apache-2.0

// Package x509pop is SPIRE's node attestation of the same name, byte for byte: the holder of a
// certificate's key proves that it holds it.
//
//	agent                                     server
//	Payload {certificates: leaf first}  ────▶ chain up to a configured CA
//	                                    ◀──── Challenge {nonce of 32 bytes} for the leaf's type of key
//	Response {nonce of 32 bytes, sig}   ────▶ sig over SHA-256(challenge's nonce ‖ response's nonce)
//
// RSA signs by PSS with SHA-256 (any salt), ECDSA sends r and s as unsigned big-endian integers.
// Messages are JSON with standard base64; both outer keys are always there, one of them null.
package x509pop

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// Type is the attestation type in AttestAgent, in agent IDs and in selectors.
const Type = "x509pop"

const (
	nonceSize = 32
	// maxMessage bounds a message, in bytes: five certificates with keys of 8,192 bits, and much to spare.
	maxMessage = 256 << 10
)

// Payload opens an attestation: DER certificates, the leaf first.
type Payload struct {
	Certificates [][]byte `json:"certificates"`
}

// Nonce is the part of a Challenge for one type of key.
type Nonce struct {
	Nonce []byte `json:"nonce"`
}

// Challenge has exactly one part.
type Challenge struct {
	RSA   *Nonce `json:"rsa_signature"`
	ECDSA *Nonce `json:"ecdsa_signature"`
}

// RSAResponse answers by RSA-PSS.
type RSAResponse struct {
	Nonce     []byte `json:"nonce"`
	Signature []byte `json:"signature"`
}

// ECDSAResponse answers by ECDSA.
type ECDSAResponse struct {
	Nonce []byte `json:"nonce"`
	R     []byte `json:"r"`
	S     []byte `json:"s"`
}

// Response has the part that its Challenge has.
type Response struct {
	RSA   *RSAResponse   `json:"rsa_signature"`
	ECDSA *ECDSAResponse `json:"ecdsa_signature"`
}

// ErrMalformed is wrapped by every error of Decode.
var ErrMalformed = errors.New("malformed x509pop message")

// Decode reads a message.
func Decode[M Payload | Challenge | Response](data []byte) (M, error) {
	var m, none M
	if len(data) > maxMessage {
		return none, fmt.Errorf("%w: %d bytes are over the limit of %d", ErrMalformed, len(data), maxMessage)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return none, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return m, nil
}

// NewChallenge asks the holder of the certificate's key. random is crypto/rand.Reader.
func NewChallenge(cert *x509.Certificate, random io.Reader) (Challenge, error) {
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return Challenge{}, errors.New("the certificate is not for digital signatures (key usage)")
	}
	n := &Nonce{make([]byte, nonceSize)}
	if _, err := io.ReadFull(random, n.Nonce); err != nil {
		return Challenge{}, fmt.Errorf("random: %w", err)
	}
	switch cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return Challenge{RSA: n}, nil
	case *ecdsa.PublicKey:
		return Challenge{ECDSA: n}, nil
	}
	return Challenge{}, fmt.Errorf("a %T can not be asked; use a certificate with an RSA or ECDSA key", cert.PublicKey)
}

// Respond answers for the key, which may live in hardware.
func Respond(key crypto.Signer, c Challenge, random io.Reader) (Response, error) {
	own := make([]byte, nonceSize)
	if _, err := io.ReadFull(random, own); err != nil {
		return Response{}, fmt.Errorf("random: %w", err)
	}
	switch key.Public().(type) {
	case *rsa.PublicKey:
		digest, err := combine(c.RSA, own)
		if err != nil {
			return Response{}, err
		}
		sig, err := key.Sign(random, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256})
		if err != nil {
			return Response{}, fmt.Errorf("sign the challenge: %w", err)
		}
		return Response{RSA: &RSAResponse{own, sig}}, nil
	case *ecdsa.PublicKey:
		digest, err := combine(c.ECDSA, own)
		if err != nil {
			return Response{}, err
		}
		der, err := key.Sign(random, digest, crypto.SHA256)
		if err != nil {
			return Response{}, fmt.Errorf("sign the challenge: %w", err)
		}
		var sig struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 {
			return Response{}, fmt.Errorf("the key made no ECDSA signature: %w", err)
		}
		return Response{ECDSA: &ECDSAResponse{own, sig.R.Bytes(), sig.S.Bytes()}}, nil
	}
	return Response{}, fmt.Errorf("a %T can not answer; use an RSA or ECDSA key", key.Public())
}

// ErrNotProven: the response does not prove that its sender holds the key.
var ErrNotProven = errors.New("the response does not prove possession of the certificate's key")

// Verify checks the response to a challenge by the public key.
func Verify(key crypto.PublicKey, c Challenge, r Response) error {
	ok := false
	switch key := key.(type) {
	case *rsa.PublicKey:
		if r.RSA == nil {
			return fmt.Errorf("%w: it has no RSA signature", ErrNotProven)
		}
		digest, err := combine(c.RSA, r.RSA.Nonce)
		if err != nil {
			return err
		}
		ok = rsa.VerifyPSS(key, crypto.SHA256, digest, r.RSA.Signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	case *ecdsa.PublicKey:
		if r.ECDSA == nil {
			return fmt.Errorf("%w: it has no ECDSA signature", ErrNotProven)
		}
		digest, err := combine(c.ECDSA, r.ECDSA.Nonce)
		if err != nil {
			return err
		}
		ok = ecdsa.Verify(key, digest, new(big.Int).SetBytes(r.ECDSA.R), new(big.Int).SetBytes(r.ECDSA.S))
	}
	if !ok {
		return ErrNotProven
	}
	return nil
}

// combine returns what is signed: a digest, which is not hashed again.
func combine(challenge *Nonce, own []byte) ([]byte, error) {
	switch {
	case challenge == nil:
		return nil, fmt.Errorf("%w: the challenge is for another type of key", ErrNotProven)
	case len(challenge.Nonce) != nonceSize || len(own) != nonceSize:
		return nil, fmt.Errorf("%w: a nonce does not have %d bytes", ErrNotProven, nonceSize)
	}
	sum := sha256.Sum256(append(bytes.Clone(challenge.Nonce), own...))
	return sum[:], nil
}
