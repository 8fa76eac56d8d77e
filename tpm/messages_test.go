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
	return Hello{Version: Version, EKCertificates: [][]byte{{1}}, EKPublic: []byte{2}, AKPublic: []byte{3}, KeyPublic: []byte{4}}
}

func challenge() Challenge {
	return Challenge{Version: Version, CredentialBlob: []byte{1}, EncryptedSecret: []byte{2}, Nonce: make([]byte, NonceSize), PCRs: []int{0, 7, 23}}
}

func quoted() Quoted {
	return Quoted{Quote: []byte{4}, QuoteSignature: []byte{5}, PCRValues: map[int][]byte{0: make([]byte, 32), 23: make([]byte, 32)}}
}

func evidence() Evidence {
	return Evidence{Secret: []byte{1}, Certify: []byte{2}, CertifySignature: []byte{3}, Quoted: quoted(),
		BootLog: []byte{6}, CommandLine: "ro quiet", AgentSHA256: make([]byte, 32), IMALog: IMALog{[]byte{7}, true}}
}

func more() More                 { return More{Version, 1 << 40} }
func continuation() Continuation { return Continuation{IMALog{[]byte{7}, false}} }
func question() Question {
	return Question{Version: Version, Nonce: make([]byte, NonceSize), PCRs: []int{10}, IMAOffset: 3}
}
func answer() Answer {
	return Answer{quoted(), IMALog{[]byte{7}, true}, History{1 << 63, [32]byte{1}}}
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
	later := `{"from_a_later_version":"AA==",`
	if data[1] == '}' {
		later = strings.TrimSuffix(later, ",")
	}
	if _, err := Decode[M](append([]byte(later), data[1:]...)); err != nil {
		t.Errorf("with an unknown field: %v", err)
	}
	if _, err := Decode[M](append(data, data...)); !errors.Is(err, ErrMalformed) {
		t.Errorf("two messages in one: %v", err)
	}
	if _, err := Decode[M]([]byte(`{}`)); !errors.Is(err, ErrMalformed) {
		t.Errorf("empty: %v", err)
	}
	for n := range data {
		if _, err := Decode[M](data[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := Decode[M](append(data, bytes.Repeat([]byte(" "), MaxMessageSize)...)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("too large: %v", err)
	}
}

func TestMessages(t *testing.T) {
	roundTrip(t, hello())
	roundTrip(t, challenge())
	roundTrip(t, evidence())
	roundTrip(t, more())
	roundTrip(t, continuation())
	roundTrip(t, question())
	roundTrip(t, answer())
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
	for what, change := range map[string]func(*Evidence){
		"a boot log that is too long":         func(e *Evidence) { e.BootLog = make([]byte, MaxBootLog+1) },
		"a command line that is too long":     func(e *Evidence) { e.CommandLine = string(make([]byte, maxCommandLine+1)) },
		"an IMA part that is too long":        func(e *Evidence) { e.IMA = make([]byte, MaxIMAChunk+1) },
		"more of nothing":                     func(e *Evidence) { e.IMA, e.IMAMore = nil, true },
		"an agent's digest of another length": func(e *Evidence) { e.AgentSHA256 = []byte{1} },
	} {
		e := evidence()
		change(&e)
		refused(what, e.check())
	}
	refused("an offset before the log", More{Version, -1}.check())
	q := question()
	q.IMAOffset = -1
	refused("an offset before the log", q.check())
}

// TestLargestEvidence: the limits on the parts fit into the limit on the message.
func TestLargestEvidence(t *testing.T) {
	e := evidence()
	e.BootLog, e.IMA = make([]byte, MaxBootLog), make([]byte, MaxIMAChunk)
	data, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode[Evidence](data); err != nil {
		t.Error(err)
	}
}

// TestQualifyingData holds the formulas: two builds that disagree can not attest.
func TestQualifyingData(t *testing.T) {
	nonce, spki, binding := []byte("nonce"), []byte("spki"), []byte("binding")
	// printf of label, lengths and parts | sha256sum, made once by hand.
	for want, got := range map[string][]byte{
		"d31525d8b2f9c0fae3a112e9ac3439b9deb51aeb11628944c5ce514293f5eae2": QualifyingData(nonce, spki, binding, []byte("secret")),
		"1ca505664c874071bcf60c2d085f40b478c3468fb5b3dfc87d5c69b4b495315b": RequoteData(nonce, spki, binding, History{3, [32]byte(bytes.Repeat([]byte{1}, 32))}),
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("got %x, want %s", got, want)
		}
	}
	if bytes.Equal(QualifyingData([]byte("ab"), []byte("c"), nil, nil), QualifyingData([]byte("a"), []byte("bc"), nil, nil)) {
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

func FuzzHello(f *testing.F)        { fuzz(f, hello()) }
func FuzzChallenge(f *testing.F)    { fuzz(f, challenge()) }
func FuzzEvidence(f *testing.F)     { fuzz(f, evidence()) }
func FuzzMore(f *testing.F)         { fuzz(f, more()) }
func FuzzContinuation(f *testing.F) { fuzz(f, continuation()) }
func FuzzQuestion(f *testing.F)     { fuzz(f, question()) }
func FuzzAnswer(f *testing.F)       { fuzz(f, answer()) }
