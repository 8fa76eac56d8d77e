// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// curves by the CKA_EC_PARAMS of their keys, a DER OBJECT IDENTIFIER (RFC 5480 §2.1.1.1).
var curves = map[string]elliptic.Curve{
	"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07": elliptic.P256(),
	"\x06\x05\x2b\x81\x04\x00\x22":             elliptic.P384(),
}

// ECParams returns the CKA_EC_PARAMS of a curve's keys.
func ECParams(curve elliptic.Curve) []byte {
	for params, c := range curves {
		if c == curve {
			return []byte(params)
		}
	}
	return nil
}

// ECPublicKey reads CKA_EC_PARAMS and CKA_EC_POINT (PKCS #11 v2.40 §2.3.3: a DER OCTET STRING of the
// point; some modules give the bare point) and returns the key as PKIX.
func ECPublicKey(params, point []byte) ([]byte, error) {
	curve := curves[string(params)]
	if curve == nil {
		return nil, errors.New("the key is on neither P-256 nor P-384")
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("the key's CKA_EC_POINT: %w", err)
	}
	return x509.MarshalPKIXPublicKey(key)
}

// RSAPublicKey reads CKA_MODULUS and CKA_PUBLIC_EXPONENT and returns the key as PKIX.
func RSAPublicKey(modulus, exponent []byte) ([]byte, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if n.BitLen() < 2048 || n.BitLen() > 8192 || n.Bit(0) == 0 || e.BitLen() > 31 || e.Int64() < 3 || e.Bit(0) == 0 {
		return nil, fmt.Errorf("the key is not RSA as we use it: %d bits, exponent of %d bits", n.BitLen(), e.BitLen())
	}
	return x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: int(e.Int64())})
}

// digestOIDs of DigestInfo (RFC 8017 §9.2 note 1).
var digestOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// ToSign returns what a token signs for a digest: CKM_ECDSA takes as much of the digest as the curve's
// order has bits, CKM_RSA_PKCS a DigestInfo.
func ToSign(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	oid, known := digestOIDs[hash]
	if !known || len(digest) != hash.Size() {
		return nil, fmt.Errorf("a token signs digests of SHA-256, SHA-384 or SHA-512, not %d bytes of %v", len(digest), hash)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return digest[:min(len(digest), k.Curve.Params().BitSize/8)], nil
	case *rsa.PublicKey:
		if _, pss := opts.(*rsa.PSSOptions); pss {
			return nil, errors.New("keys in a token sign by PKCS #1 v1.5, not by PSS")
		}
		return asn1.Marshal(struct {
			Algorithm pkix.AlgorithmIdentifier
			Digest    []byte
		}{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}, digest})
	}
	return nil, fmt.Errorf("a key of type %T is not known here", public)
}

// FromSigned makes the signature that Go knows of what a token gave, and verifies it: neither a fault
// of the token nor a handle that names another key by now gives a signature away.
func FromSigned(public crypto.PublicKey, digest []byte, hash crypto.Hash, raw []byte) ([]byte, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		size := (k.Curve.Params().BitSize + 7) / 8
		if len(raw) != 2*size {
			return nil, fmt.Errorf("the token gave a signature of %d bytes, not %d", len(raw), 2*size)
		}
		der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:])})
		if err != nil || !ecdsa.VerifyASN1(k, digest, der) {
			return nil, errWrong
		}
		return der, nil
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(k, hash, digest, raw) != nil {
			return nil, errWrong
		}
		return bytes.Clone(raw), nil
	}
	return nil, fmt.Errorf("a key of type %T is not known here", public)
}

var errWrong = errors.New("the token gave a signature that does not verify by the key's public half: have the HSM checked")
