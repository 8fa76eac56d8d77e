// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/hex"

	"github.com/google/go-tpm/tpm2"
)

// EKProfile is one kind of endorsement key (TCG EK Credential Profile 2.5, 2.2.1.4 and B.3, B.4).
type EKProfile struct {
	// Kind is "rsa2048", "ecc256" or "ecc384".
	Kind string
	// NV is the index that holds the certificate.
	NV tpm2.TPMHandle
	// Template makes the key, as a primary key of the endorsement hierarchy.
	Template tpm2.TPMTPublic
}

// EKProfiles are the endorsement keys that we can use, in order of preference. The low-range
// ones (L-1, L-2) come before the high-range ones (H-1 to H-3): their hashes are what inventories list.
var EKProfiles = [...]EKProfile{
	{"rsa2048", 0x01c00002, tpm2.RSAEKTemplate},
	{"ecc256", 0x01c0000a, tpm2.ECCEKTemplate},
	{"rsa2048", 0x01c00012, highRange(tpm2.TPMAlgRSA, tpm2.TPMAlgSHA256,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(128), KeyBits: 2048}))},
	{"ecc256", 0x01c00014, highRange(tpm2.TPMAlgECC, tpm2.TPMAlgSHA256,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(128), CurveID: tpm2.TPMECCNistP256}))},
	{"ecc384", 0x01c00016, highRange(tpm2.TPMAlgECC, tpm2.TPMAlgSHA384,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(256), CurveID: tpm2.TPMECCNistP384}))},
}

// policyB is the policy of the high-range templates (B.6), by name algorithm. They may be used
// with the key's own, empty, authorization too.
var policyB = map[tpm2.TPMAlgID]string{
	tpm2.TPMAlgSHA256: "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
	tpm2.TPMAlgSHA384: "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12",
}

func highRange(kind, name tpm2.TPMAlgID, parameters tpm2.TPMUPublicParms) tpm2.TPMTPublic {
	policy, err := hex.DecodeString(policyB[name])
	if err != nil {
		panic(err) // a constant above
	}
	return tpm2.TPMTPublic{
		Type: kind, NameAlg: name, Parameters: parameters, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
	}
}

func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}
