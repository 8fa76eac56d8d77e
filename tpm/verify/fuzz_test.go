// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/structures"
)

// signingPublic is a TPMT_PUBLIC of a P-256 signing key with a true point.
func signingPublic(f *testing.F, restricted bool) []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, SignEncrypt: true, Restricted: restricted},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}}),
	})
}

// FuzzBegin gives the server's first step every public area; nothing may end the process, and
// what passes is fit.
func FuzzBegin(f *testing.F) {
	ak, key := signingPublic(f, true), signingPublic(f, false)
	rsaEK := tpm2.RSAEKTemplate
	rsaEK.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 256)})
	f.Add(tpm2.Marshal(rsaEK), ak, key, []byte{0x30, 0})
	f.Add(tpm2.Marshal(tpm2.ECCEKTemplate), ak, key, []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, ek, ak, key, cert []byte) {
		policy := &Policy{AllowedEKs: map[selectors.Digest]bool{}}
		if p, err := parsePublic(ek); err == nil {
			hash, err := ekHash(p.Key)
			if err != nil {
				t.Fatal(err)
			}
			policy.AllowedEKs[hash] = true
		}
		s, c, err := Begin(policy, tpm.Hello{Version: tpm.Version, EKCertificates: [][]byte{cert}, EKPublic: ek, AKPublic: ak, KeyPublic: key}, now, rand.Reader)
		if err != nil {
			return
		}
		if !s.ak.Attributes.Has(structures.Restricted) || s.key.Attributes.Has(structures.Restricted) {
			t.Fatal("an unfit key passed")
		}
		if _, err := tpm.Encode(c); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzDirectoryName reads every subject alternative name.
func FuzzDirectoryName(f *testing.F) {
	f.Add([]byte{0x30, 0x04, 0xa4, 0x02, 0x30, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		names, err := directoryName(data)
		if err != nil && names != nil {
			t.Fatal("names with an error")
		}
	})
}
