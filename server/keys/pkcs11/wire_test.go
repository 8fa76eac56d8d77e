// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"reflect"
	"strings"
	"testing"
)

func frame(t testing.TB, message any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeFrame(&b, message); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func raw(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// nobody is a token without keys.
type nobody struct{}

func (nobody) Sessions() int                           { return 1 }
func (nobody) List(string) ([]string, error)           { return nil, nil }
func (nobody) Generate(_, _ string) ([]byte, error)    { return nil, errors.New("no") }
func (nobody) Find(label string) ([]byte, error)       { return nil, &Error{NotFound, label} }
func (nobody) Sign(_ string, d []byte) ([]byte, error) { return d, nil }
func (nobody) Delete(string) error                     { return nil }
func (nobody) Close() error                            { return nil }

// stream is a server that has said all it will.
type stream struct {
	io.Reader
	bytes.Buffer
}

func (s *stream) Read(b []byte) (int, error) { return s.Reader.Read(b) }

func serve(t testing.TB, said []byte) ([]Response, error) {
	s := &stream{Reader: bytes.NewReader(said)}
	err := Serve(s, func(Open) (Token, error) { return nobody{}, nil })
	var answers []Response
	for {
		var a Response
		if e := readFrame(&s.Buffer, &a); errors.Is(e, io.EOF) {
			return answers, err
		} else if e != nil {
			t.Fatalf("our own answer: %v", e)
		}
		answers = append(answers, a)
	}
}

var opening = Request{ID: 1, Op: OpOpen, Open: &Open{Version: Version, Module: "/m.so"}}

func TestServe(t *testing.T) {
	sign := Request{ID: 2, Op: OpSign, Label: "a", Data: []byte("x")}
	answers, err := serve(t, append(frame(t, opening), frame(t, sign)...))
	if want := []Response{{ID: 1, Sessions: 1}, {ID: 2, Signature: []byte("x")}}; err != nil || !reflect.DeepEqual(answers, want) {
		t.Errorf("answers %+v, %v", answers, err)
	}
	answers, err = serve(t, append(frame(t, opening), frame(t, Request{ID: 2, Op: OpFind, Label: "a"})...))
	if err != nil || answers[1].Error == nil || answers[1].Error.Kind != NotFound {
		t.Errorf("answers %+v, %v", answers, err)
	}
	old := opening
	old.Open = &Open{Version: Version + 1}
	if answers, err := serve(t, frame(t, old)); err != nil || answers[0].Error == nil || !strings.Contains(answers[0].Error.Text, "different versions") {
		t.Errorf("another version: %+v, %v", answers, err)
	}
	for what, said := range map[string][]byte{
		"sign before open": frame(t, sign), "no operation": frame(t, Request{ID: 1, Op: "x", Label: "a"}), "unknown field": raw(`{"op":"list","label":"a","x":1}`),
		"too long": {0xff, 0xff, 0xff, 0xff}, "empty": raw(""), "cut": frame(t, opening)[:20], "no label": frame(t, Request{Op: OpFind}),
		"open without settings": raw(`{"op":"open"}`), "nothing to sign": frame(t, Request{Op: OpSign, Label: "a"}), "label": frame(t, Request{Op: OpFind, Label: strings.Repeat("a", maxLabel+1)}),
	} {
		if answers, err := serve(t, said); !errors.Is(err, errFrame) {
			t.Errorf("%s: %+v, %v", what, answers, err)
		}
	}
}

// FuzzServe: whatever a server says, the program answers or ends.
func FuzzServe(f *testing.F) {
	f.Add(append(frame(f, opening), frame(f, Request{ID: 2, Op: OpGenerate, Label: "a", Type: "ec-p256"})...))
	f.Add(append(frame(f, opening), raw(`{"id":3,"op":"list","label":"assay/"}`)...))
	f.Add(raw(`{"op":"open","open":{"version":2,"slot":-1}}`))
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, said []byte) { _, _ = serve(t, said) })
}

// FuzzResponse: whatever a program answers, the server reads it as it would be written, or not at all.
func FuzzResponse(f *testing.F) {
	f.Add(frame(f, Response{ID: 1, Sessions: 8}))
	f.Add(frame(f, Response{ID: 2, Error: failed("no")}))
	f.Add(raw(`{"id":18446744073709551615,"labels":["a","b"],"public_key":"AA=="}`))
	f.Add(raw(`{"error":{"kind":"pin"}}{}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		var a, again Response
		if readFrame(bytes.NewReader(said), &a) != nil {
			return
		}
		if err := readFrame(bytes.NewReader(frame(t, a)), &again); err != nil || !reflect.DeepEqual(normal(a), normal(again)) {
			t.Errorf("%+v is %+v when read again (%v)", a, again, err)
		}
	})
}

// normal makes empty lists none.
func normal(a Response) Response {
	if len(a.Labels) == 0 {
		a.Labels = nil
	}
	a.PublicKey, a.Signature = append([]byte(nil), a.PublicKey...), append([]byte(nil), a.Signature...)
	return a
}

// FuzzPublicKey: attributes that a module gives are a key as Go has it, or an error.
func FuzzPublicKey(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	wrapped, err := asn1.Marshal(point)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ECParams(elliptic.P384()), point)
	f.Add(ECParams(elliptic.P384()), wrapped)
	f.Add(ECParams(elliptic.P256()), wrapped)
	f.Add(bytes.Repeat([]byte{0xff}, 256), []byte{1, 0, 1})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, read := range []func(a, b []byte) ([]byte, error){ECPublicKey, RSAPublicKey} {
			der, err := read(a, b)
			if err != nil {
				continue
			}
			if _, err := x509.ParsePKIXPublicKey(der); err != nil {
				t.Errorf("a key that Go does not read: %v", err)
			}
		}
	})
}

func TestECPoints(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		want, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		point := want[len(want)-1-2*((curve.Params().BitSize+7)/8):]
		wrapped, err := asn1.Marshal(point)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{point, wrapped} {
			if got, err := ECPublicKey(ECParams(curve), form); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %x, %v", curve.Params().Name, got, err)
			}
		}
		point[5] ^= 1
		if _, err := ECPublicKey(ECParams(curve), point); err == nil {
			t.Error("a point that is not on its curve")
		}
	}
}

// TestSignatures holds both conversions against Go's own signers, for each hash.
func TestSignatures(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		h := hash.New()
		h.Write([]byte("x"))
		digest := h.Sum(nil)
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			data, err := ToSign(&key.PublicKey, digest, hash)
			if err != nil {
				t.Fatal(err)
			}
			r, s, err := ecdsa.Sign(rand.Reader, key, data)
			if err != nil {
				t.Fatal(err)
			}
			size := (curve.Params().BitSize + 7) / 8
			given := append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
			der, err := FromSigned(&key.PublicKey, digest, hash, given)
			if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, digest, der) {
				t.Errorf("%s, %v: %v", curve.Params().Name, hash, err)
			}
			for what, wrong := range map[string][]byte{"short": given[1:], "zero": make([]byte, 2*size), "none": nil} {
				if _, err := FromSigned(&key.PublicKey, digest, hash, wrong); err == nil {
					t.Errorf("a signature that is %s", what)
				}
			}
		}
		// CKM_RSA_PKCS pads what it is given: a signature without a hash of its own.
		data, err := ToSign(&rsaKey.PublicKey, digest, hash)
		if err != nil {
			t.Fatal(err)
		}
		given, err := rsa.SignPKCS1v15(nil, rsaKey, 0, data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := FromSigned(&rsaKey.PublicKey, digest, hash, given); err != nil {
			t.Errorf("RSA, %v: %v", hash, err)
		}
	}
	digest := sha256.Sum256(nil)
	if _, err := ToSign(&rsaKey.PublicKey, digest[:], crypto.SHA1); err == nil {
		t.Error("SHA-1")
	}
	if _, err := RSAPublicKey(new(big.Int).Lsh(big.NewInt(1), 1023).Bytes(), []byte{1, 0, 1}); err == nil {
		t.Error("an RSA key of 1024 bits")
	}
}
