// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func sized(blob []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(blob))), blob...)
}

func openRSA(t *testing.T, c Config) *Device {
	t.Helper()
	c.EK = "rsa2048"
	d, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// credential does the server's part for a Residence.
func credential(t *testing.T, r Residence, secret []byte) (blob, encrypted []byte) {
	t.Helper()
	ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.EK)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.AK)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		t.Fatal(err)
	}
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		t.Fatal(err)
	}
	blob, encrypted, err = tpm2.CreateCredential(rand.Reader, to, name.Buffer, secret)
	if err != nil {
		t.Fatal(err)
	}
	return blob, encrypted
}

func signed(public crypto.PublicKey, message, signature []byte) bool {
	digest := sha256.Sum256(message)
	if key, ok := public.(*rsa.PublicKey); ok {
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	}
	return ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], signature)
}

func TestDevIDAnswersAndLeavesNoHandles(t *testing.T) {
	for name, ecc := range map[string]bool{"rsa": false, "ecc": true} {
		t.Run(name, func(t *testing.T) {
			p := swtpmtest.New(t)
			blobs := devidtest.Provision(t, p, ecc, "a password")
			d := openRSA(t, Config{Path: p.Path})
			k, err := d.DevID(blobs.Public, blobs.Private, "a password")
			if err != nil {
				t.Fatal(err)
			}
			noHandles(t, d, "DevID")
			if !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(blobs.Leaf.PublicKey) {
				t.Error("another key")
			}
			if _, err := d.DevID(sized(blobs.Public), sized(blobs.Private), "a password"); err != nil {
				t.Errorf("blobs with sizes, as tpm2-tools write them: %v", err)
			}
			answers := func(when string) {
				t.Helper()
				r, err := k.Residence()
				if err != nil {
					t.Fatal(err)
				}
				noHandles(t, d, "Residence "+when)
				nonce, secret := bytes.Repeat([]byte{5}, 32), bytes.Repeat([]byte{7}, 32)
				blob, encrypted := credential(t, r, secret)
				signature, recovered, err := k.Answer(nonce, blob, encrypted)
				if err != nil {
					t.Fatal(err)
				}
				noHandles(t, d, "Answer "+when)
				if !bytes.Equal(recovered, secret) || !signed(k.Public(), nonce, signature) {
					t.Error("a wrong answer " + when)
				}
				encrypted[9] ^= 1
				if _, _, err := k.Answer(nonce, blob, encrypted); err == nil {
					t.Error("a changed credential is answered " + when)
				}
				if _, _, err := k.Answer(nonce[1:], blob, encrypted); err == nil {
					t.Error("a short nonce is signed " + when)
				}
				noHandles(t, d, "a refusal "+when)
			}
			answers("at first")
			p.Off()
			p.On()
			answers("after the TPM was restarted")
		})
	}
}

func TestDevIDRefusals(t *testing.T) {
	p := swtpmtest.New(t)
	own := devidtest.Provision(t, p, true, "right")
	other := devidtest.Provision(t, swtpmtest.Other(t), true, "right")
	d := openRSA(t, Config{Path: p.Path})
	altered := func(change func(*tpm2.TPMTPublic)) []byte {
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](own.Public)
		if err != nil {
			t.Fatal(err)
		}
		change(public)
		return tpm2.Marshal(*public)
	}
	for want, c := range map[string]struct {
		public, private []byte
		password        string
	}{
		"not made below this TPM's storage root key": {other.Public, other.Private, "right"},
		"no TPMT_PUBLIC":           {own.Public[1:], own.Private, "right"},
		"private part is empty":    {own.Public, nil, "right"},
		"it can not sign":          {altered(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }), own.Private, "right"},
		"ECDSA with SHA-256":       {altered(noScheme), own.Private, "right"},
		"its password is another":  {own.Public, own.Private, "wrong"},
		"neither RSA nor ECC (0x0": {tpm2.Marshal(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true}, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}), Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{})}), own.Private, "right"},
	} {
		if _, err := d.DevID(c.public, c.private, c.password); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		noHandles(t, d, want)
	}
	ecc, err := Open(t.Context(), Config{Path: p.Path, EK: "ecc256"})
	if err != nil {
		t.Fatal(err)
	}
	defer ecc.Close()
	if _, err := ecc.DevID(own.Public, own.Private, "right"); err == nil || !strings.Contains(err.Error(), "0x01c00002") {
		t.Errorf("a TPM without a certificate for the RSA EK: %v", err)
	}
}

func noScheme(p *tpm2.TPMTPublic) {
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}})
}

// The TPM would lock itself for everybody; the agent stops before.
func TestDevIDNeverLocksTheTPM(t *testing.T) {
	p := swtpmtest.New(t)
	blobs := devidtest.Provision(t, p, true, "right", devidtest.UnderLockout)
	d := openRSA(t, Config{Path: p.Path})
	var err error
	for tries := 0; ; tries++ {
		if tries == 40 {
			t.Fatalf("it still tries: %v", err)
		}
		if _, err = d.DevID(blobs.Public, blobs.Private, "wrong"); err == nil || errors.Is(err, tpm2.TPMRCLockout) {
			t.Fatalf("try %d: %v", tries, err)
		}
		if strings.Contains(err.Error(), "locks itself") {
			break
		}
	}
	// TPM2_DictionaryAttackLockReset(TPM_RH_LOCKOUT), with an empty password.
	response, err := d.tpm.Send([]byte{0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x39, 0x40, 0, 0, 10, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0})
	if err != nil || !bytes.Equal(response[6:10], make([]byte, 4)) {
		t.Fatalf("the counter was not reset: %x, %v", response, err)
	}
	if _, err := d.DevID(blobs.Public, blobs.Private, "right"); err != nil {
		t.Errorf("the right password: %v", err)
	}
	noHandles(t, d, "wrong passwords")
}

func TestHierarchyPasswords(t *testing.T) {
	p := swtpmtest.New(t)
	blobs := devidtest.Provision(t, p, false, "")
	d := openRSA(t, Config{Path: p.Path})
	for _, h := range []hierarchy{d.owner, d.endorsement} {
		if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: h.auth(), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("of " + h.name)}}).Execute(d.tpm); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), Config{Path: p.Path, EK: "rsa2048"}); err == nil {
		t.Error("opened without passwords")
	}
	if _, err := Open(t.Context(), Config{Path: p.Path, EK: "rsa2048", OwnerPassword: "of owner"}); err == nil || !strings.Contains(err.Error(), "set endorsement_hierarchy_password") {
		t.Errorf("opened without the endorsement password: %v", err)
	}
	d = openRSA(t, Config{Path: p.Path, OwnerPassword: "of owner", EndorsementPassword: "of endorsement"})
	k, err := d.DevID(blobs.Public, blobs.Private, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Residence()
	if err != nil {
		t.Fatal(err)
	}
	blob, encrypted := credential(t, r, []byte("secret"))
	if _, secret, err := k.Answer(make([]byte, 32), blob, encrypted); err != nil || string(secret) != "secret" {
		t.Errorf("%q, %v", secret, err)
	}
	noHandles(t, d, "passwords")
}

func FuzzDevIDBlobs(f *testing.F) {
	f.Add(tpm2.Marshal(rsaAttestationKey()), []byte{1})
	f.Add(sized(tpm2.Marshal(signingKey(false, [32]byte{}))), sized([]byte{1}))
	f.Fuzz(func(t *testing.T, public, private []byte) {
		o, area, err := devidObject(withoutSize(public), withoutSize(private), "")
		if err != nil {
			return
		}
		if !area.ObjectAttributes.SignEncrypt || len(o.private) == 0 || !bytes.HasSuffix(public, o.public) {
			t.Errorf("%x is taken for a DevID key", public)
		}
	})
}
