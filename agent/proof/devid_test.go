// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/devid"
	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

// devidOf loads a DevID that was provisioned on the TPM.
func devidOf(t *testing.T, p *swtpmtest.TPM, made *devidtest.DevID, certificate string) (*DevID, error) {
	t.Helper()
	d, err := device.Open(t.Context(), device.Config{Path: p.Path, EK: "rsa2048"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	key, err := d.DevID(made.Public, made.Private, "")
	if err != nil {
		t.Fatal(err)
	}
	return NewDevID(d, key, certificate)
}

// RSA and ECC DevIDs are proven to what judges them on our server; the SVID is for a key of its own, which the TPM makes again after a restart.
func TestDevID(t *testing.T) {
	p := swtpmtest.New(t)
	for name, ecc := range map[string]bool{"rsa": false, "ecc": true} {
		t.Run(name, func(t *testing.T) {
			made := devidtest.Provision(t, p, ecc, "")
			a, err := devidOf(t, p, made, made.Write(t, t.TempDir()).Certificate)
			if err != nil {
				t.Fatal(err)
			}
			roots := devid.Roots{DevID: x509.NewCertPool(), EK: p.CA}
			roots.DevID.AddCert(made.CA)
			payload, own, err := a.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			session, question, err := devid.Begin(roots, payload, time.Now().Add(time.Minute), rand.Reader) // swtpm's certificates begin now
			if err != nil {
				t.Fatal(err)
			}
			answer, err := a.Answer(t.Context(), question, nil)
			if err == nil {
				err = session.Finish(answer)
			}
			if err != nil {
				t.Fatal(err)
			}
			key := own.Public().(interface{ Equal(crypto.PublicKey) bool })
			if key.Equal(made.Leaf.PublicKey) {
				t.Error("the SVID is for the DevID key")
			}
			saved, err := a.Save(own)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := a.Restore(saved); err != nil || !key.Equal(again.Public()) {
				t.Errorf("the node's key is lost at a restart: %v", err)
			}
		})
	}
}

func TestDevIDRefusals(t *testing.T) {
	p := swtpmtest.New(t)
	made, other := devidtest.Provision(t, p, true, ""), devidtest.Provision(t, p, true, "")
	files, others := made.Write(t, t.TempDir()), other.Write(t, t.TempDir())
	for path, want := range map[string]string{others.Certificate: "for another key", files.Private: "holds no PEM", "/none": "devid_cert_path: open /none"} {
		if _, err := devidOf(t, p, made, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	a, err := devidOf(t, p, made, files.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 32)
	for _, c := range []any{nil, devid.Challenge{DevID: nonce}, devid.Challenge{DevID: nonce[1:], CredActivation: &devid.Credential{}},
		devid.Challenge{DevID: nonce, CredActivation: &devid.Credential{Credential: nonce, Secret: nonce}}} {
		if _, _, err := a.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		challenge, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := a.Answer(t.Context(), challenge, nil); err == nil {
			t.Errorf("%s is answered by %s", challenge, answer)
		}
	}
}
