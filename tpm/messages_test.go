// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func hello() Hello {
	return Hello{Version: 1, EKCertificates: [][]byte{{1}}, EKPublic: []byte{2}, AKPublic: []byte{3}, KeyPublic: []byte{4}}
}

func challenge() Challenge {
	return Challenge{Version: 1, CredentialBlob: []byte{1}, EncryptedSecret: []byte{2}, Nonce: make([]byte, NonceSize), PCRs: []int{0, 7, 23}}
}

func evidence() Evidence {
	return Evidence{Secret: []byte{1}, Certify: []byte{2}, CertifySignature: []byte{3}, Quote: []byte{4}, QuoteSignature: []byte{5},
		PCRValues: map[int][]byte{0: make([]byte, 32), 23: make([]byte, 32)}}
}

func roundTrip[M Message](t *testing.T, m M) {
	t.Helper()
	data, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode[M](data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, got) {
		t.Errorf("got %+v, want %+v", got, m)
	}
	// A later version may add fields.
	if _, err := Decode[M](append([]byte(`{"event_log":"AA==",`), data[1:]...)); err != nil {
		t.Errorf("with an unknown field: %v", err)
	}
	if _, err := Decode[M](append(data, data...)); !errors.Is(err, ErrMalformed) {
		t.Errorf("two messages in one: %v", err)
	}
	if _, err := Decode[M]([]byte(`{}`)); !errors.Is(err, ErrMalformed) {
		t.Errorf("empty: %v", err)
	}
	if _, err := Decode[M](append(data, bytes.Repeat([]byte(" "), MaxMessageSize)...)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("too large: %v", err)
	}
}

func TestMessages(t *testing.T) {
	roundTrip(t, hello())
	roundTrip(t, challenge())
	roundTrip(t, evidence())
}

func TestMessagesThatAreRefused(t *testing.T) {
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	h := hello()
	h.EKCertificates = make([][]byte, maxCertificates+1)
	refused("too many certificates", h.check())
	h = hello()
	h.AKPublic = make([]byte, maxPart+1)
	refused("a part that is too large", h.check())
	for _, pcrs := range [][]int{nil, {-1}, {24}, {1, 1}, {2, 1}} {
		c := challenge()
		c.PCRs = pcrs
		refused("a wrong PCR selection", c.check())
	}
	c := challenge()
	c.Nonce = c.Nonce[1:]
	refused("a short nonce", c.check())
	for _, n := range []int{-1, 24} {
		e := evidence()
		e.PCRValues[n] = make([]byte, 32)
		refused("a PCR outside of the bank", e.check())
	}
	e := evidence()
	e.PCRValues[0] = make([]byte, 20)
	refused("a SHA-1 value", e.check())
}

// TestQualifyingData holds the formula: two builds that disagree can not attest.
func TestQualifyingData(t *testing.T) {
	// printf of the label, lengths and parts | sha256sum, made once by hand.
	const want = "5e2a9d0449d9832cb331c27449c5b258b6a5eeb00a4dcc0289e48e3c61fe1f4c"
	got := hex.EncodeToString(QualifyingData([]byte("nonce"), []byte("spki"), []byte("secret")))
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if bytes.Equal(QualifyingData([]byte("ab"), []byte("c"), nil), QualifyingData([]byte("a"), []byte("bc"), nil)) {
		t.Error("parts run into each other")
	}
}

func fuzz[M Message](f *testing.F, seed M) {
	data, err := Encode(seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode[M](data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("an untyped error: %v", err)
			}
			return
		}
		again, err := Encode(m)
		if err != nil {
			t.Fatalf("what was decoded can not be encoded: %v", err)
		}
		if _, err := Decode[M](again); err != nil && len(again) <= MaxMessageSize {
			t.Fatalf("and not decoded again: %v", err)
		}
	})
}

func FuzzHello(f *testing.F)     { fuzz(f, hello()) }
func FuzzChallenge(f *testing.F) { fuzz(f, challenge()) }
func FuzzEvidence(f *testing.F)  { fuzz(f, evidence()) }
