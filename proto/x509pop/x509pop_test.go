// SPDX-License-Identifier: Apache-2.0

package x509pop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	rsaKey   = must(rsa.GenerateKey(rand.Reader, 2048))
	ecdsaKey = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
)

func certOf(key crypto.Signer) *x509.Certificate {
	return &x509.Certificate{PublicKey: key.Public(), KeyUsage: x509.KeyUsageDigitalSignature}
}

func TestProof(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey, "ecdsa": ecdsaKey} {
		for range 50 { // r and s have leading zeros now and then
			c := must(NewChallenge(certOf(key), rand.Reader))
			data := string(must(json.Marshal(c)))
			other := map[string]string{"rsa": `"ecdsa_signature":null`, "ecdsa": `"rsa_signature":null`}[name]
			if !strings.Contains(data, other) || !strings.Contains(data, `"`+name+`_signature":{"nonce":"`) {
				t.Fatal(data)
			}
			wire := must(json.Marshal(must(Respond(key, must(Decode[Challenge]([]byte(data))), rand.Reader))))
			r := must(Decode[Response](wire))
			if err := Verify(key.Public(), c, r); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			again := must(NewChallenge(certOf(key), rand.Reader))
			if err := Verify(key.Public(), again, r); !errors.Is(err, ErrNotProven) {
				t.Fatalf("%s: a replay: %v", name, err)
			}
		}
	}
}

// TestSalts: SPIRE's agents sign with the largest salt, hardware perhaps with that of the hash.
func TestSalts(t *testing.T) {
	c := must(NewChallenge(certOf(rsaKey), rand.Reader))
	own := make([]byte, nonceSize)
	sum := sha256.Sum256(append(append([]byte{}, c.RSA.Nonce...), own...))
	for _, salt := range []int{rsa.PSSSaltLengthAuto, rsa.PSSSaltLengthEqualsHash} {
		sig := must(rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: salt}))
		if err := Verify(rsaKey.Public(), c, Response{RSA: &RSAResponse{own, sig}}); err != nil {
			t.Errorf("salt %d: %v", salt, err)
		}
	}
	old := must(rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, sum[:]))
	if err := Verify(rsaKey.Public(), c, Response{RSA: &RSAResponse{own, old}}); !errors.Is(err, ErrNotProven) {
		t.Errorf("PKCS#1 v1.5: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for name, cert := range map[string]*x509.Certificate{
		"key usage": {PublicKey: rsaKey.Public()},
		"ed25519":   {PublicKey: ed25519.PublicKey(make([]byte, 32)), KeyUsage: x509.KeyUsageDigitalSignature},
	} {
		if _, err := NewChallenge(cert, rand.Reader); err == nil {
			t.Errorf("%s: challenged", name)
		}
	}
	rc, ec := must(NewChallenge(certOf(rsaKey), rand.Reader)), must(NewChallenge(certOf(ecdsaKey), rand.Reader))
	rr, er := must(Respond(rsaKey, rc, rand.Reader)), must(Respond(ecdsaKey, ec, rand.Reader))
	for name, err := range map[string]error{
		"no part":               Verify(rsaKey.Public(), rc, Response{}),
		"the other part":        Verify(rsaKey.Public(), rc, er),
		"the other key":         Verify(ecdsaKey.Public(), ec, rr),
		"the other challenge":   Verify(rsaKey.Public(), ec, rr),
		"a short nonce":         Verify(ecdsaKey.Public(), ec, Response{ECDSA: &ECDSAResponse{er.ECDSA.Nonce[1:], er.ECDSA.R, er.ECDSA.S}}),
		"empty r and s":         Verify(ecdsaKey.Public(), ec, Response{ECDSA: &ECDSAResponse{Nonce: er.ECDSA.Nonce}}),
		"no key":                Verify(nil, ec, er),
		"a foreign challenge":   func() error { _, err := Respond(rsaKey, ec, rand.Reader); return err }(),
		"a challenge of 1 byte": func() error { _, err := Respond(rsaKey, Challenge{RSA: &Nonce{[]byte{1}}}, rand.Reader); return err }(),
	} {
		if !errors.Is(err, ErrNotProven) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode[Payload](make([]byte, maxMessage+1)); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// FuzzResponse: whatever comes, only what the key signed verifies.
func FuzzResponse(f *testing.F) {
	rc, ec := must(NewChallenge(certOf(rsaKey), rand.Reader)), must(NewChallenge(certOf(ecdsaKey), rand.Reader))
	f.Add([]byte(`{"rsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","signature":"AA=="},"ecdsa_signature":null}`))
	f.Add([]byte(`{"rsa_signature":null,"ecdsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","r":"AQ==","s":"AQ=="}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode[Response](data)
		if err != nil {
			return
		}
		if Verify(rsaKey.Public(), rc, r) == nil || Verify(ecdsaKey.Public(), ec, r) == nil {
			t.Fatalf("a forgery: %s", data)
		}
	})
}
