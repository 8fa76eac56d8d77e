// SPDX-License-Identifier: Apache-2.0

package devid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm/structures"
)

// FuzzPayload: a stranger's payload ends in an error, not in a panic; each part is judged, though
// Begin would stop at the first one that is wrong.
func FuzzPayload(f *testing.F) {
	ek := tpm2.Marshal(tpm2.RSAEKTemplate)
	seed, err := json.Marshal(Payload{DevIDCert: [][]byte{{0x30, 0}}, DevIDPub: ek, EKPub: ek, AKPub: ek, EKCert: []byte{0x30, 0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"DevIDCert":null}`))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	leaf, none := &x509.Certificate{PublicKey: key.Public()}, x509.NewCertPool()
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode[Payload](data)
		if err != nil {
			return
		}
		if (&Session{}).judgeCertificate(none, p.DevIDCert, time.Now()) == nil {
			t.Error("a certificate without a root")
		}
		if _, err := judgeEK(none, p, time.Now()); err == nil {
			t.Error("an EK without a root")
		}
		if _, err := (&Session{Leaf: leaf}).judgeCertification(p); err == nil {
			t.Error("a certification without a TPM")
		}
		if ak, err := structures.ParsePublic(p.AKPub); err == nil {
			if _, err := ak.VerifyAttest(p.CertifiedDevID, p.CertificationSignature); err == nil {
				t.Log("an attestation")
			}
		}
	})
}
