// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// TestEKs: the templates give the keys that the certificates are for, and they activate credentials.
func TestEKs(t *testing.T) {
	p := swtpmtest.New(t)
	hashes := map[[32]byte]string{}
	for _, kind := range []string{"rsa2048", "ecc256", "ecc384"} {
		d, err := Open(t.Context(), Config{Path: p.Path, EK: kind})
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t, d, 1)
		hello, err := d.Hello(key)
		if err != nil {
			t.Fatal(err)
		}
		secret := bytes.Repeat([]byte{7}, tpm.SecretSize)
		e, err := d.Answer(key, challenge(t, hello, secret), binding)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if !bytes.Equal(e.Secret, secret) {
			t.Errorf("%s: another secret came back", kind)
		}
		noHandles(t, d, kind)
		// swtpm_setup certifies these two; for ECC P-256 there is none.
		if kind != "ecc256" {
			cert, err := x509.ParseCertificate(hello.EKCertificates[0])
			if err != nil {
				t.Fatal(err)
			}
			ek, err := publicKey(hello.EKPublic)
			if err != nil {
				t.Fatal(err)
			}
			if !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(ek) {
				t.Errorf("%s: the certificate is for another key", kind)
			}
		} else if len(hello.EKCertificates) != 0 {
			t.Errorf("%s: a certificate", kind)
		}
		hash, err := d.EKHash()
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := hashes[hash]; ok {
			t.Errorf("%s and %s are one key", kind, other)
		}
		hashes[hash] = kind
		d.Close()
	}
}

// TestChain: a TPM may carry the certificates of its maker's CAs, over several indices and padded.
func TestChain(t *testing.T) {
	p := swtpmtest.New(t)
	var cas []byte
	for block, rest := pem.Decode(p.CAPEM); block != nil; block, rest = pem.Decode(rest) {
		cas = append(cas, block.Bytes...)
	}
	d := open(t, p.Path)
	half := len(cas) / 2
	defineNV(t, d, chainFirst, cas[:half])
	defineNV(t, d, chainFirst+1, append(bytes.Clone(cas[half:]), 0xff, 0xff, 0xff))
	hello, err := open(t, p.Path).Hello(newKey(t, d, 1))
	if err == nil {
		t.Fatal("a key of another device was accepted")
	}
	d = open(t, p.Path)
	if hello, err = d.Hello(newKey(t, d, 1)); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(hello.EKCertificates[1:], nil); !bytes.Equal(got, cas) {
		t.Errorf("%d certificates with %d bytes, want %d", len(hello.EKCertificates)-1, len(got), len(cas))
	}
	noHandles(t, d, "reading a chain")
}

func defineNV(t *testing.T, d *Device, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, AuthWrite: true, NoDA: true}})
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: public}).Execute(d.tpm); err != nil {
		t.Fatal(err)
	}
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += nvChunk {
		_, err := tpm2.NVWrite{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: index, Name: r.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+nvChunk, len(data))]}, Offset: uint16(at)}.Execute(d.tpm)
		if err != nil {
			t.Fatal(err)
		}
		if r, err = (tpm2.NVReadPublic{NVIndex: index}).Execute(d.tpm); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnknownEK(t *testing.T) {
	if _, err := Open(t.Context(), Config{Path: "unix:/x", EK: "rsa4096"}); err == nil || !strings.Contains(err.Error(), `write "rsa2048"`) {
		t.Error(err)
	}
}
