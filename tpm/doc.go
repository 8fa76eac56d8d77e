// SPDX-License-Identifier: Apache-2.0

// Package tpm holds the messages and types of node attestation by TPM. It issues no TPM
// command and judges nothing: tpm/device answers, tpm/verify judges.
//
// The messages are JSON documents, carried as opaque bytes in SPIRE's AttestAgent stream
// under the attestor type "tpm":
//
//	agent (tpm/device)                                        server (tpm/verify)
//	  │ NV_Read EK certificate, CreatePrimary EK, AK, key            │
//	  │ ── payload: Hello{EK certificates, EK, AK, key} ───────────▶ │ certificate path and profile,
//	  │                                                              │ EK, AK and key attributes
//	  │                                                              │ MakeCredential(EK, Name(AK), secret)
//	  │ ◀── challenge: Challenge{credential, nonce, PCRs} ────────── │ nonce: 32 bytes, once, 60 s
//	  │ ActivateCredential(AK, EK) → secret                          │
//	  │ q = QualifyingData(nonce, key, secret)                       │
//	  │ Certify(key, AK, q)                                          │
//	  │ PCR_Read, Quote(AK, q, PCRs)                                 │
//	  │ ── challenge_response: Evidence{secret, certify, quote} ───▶ │ secret, CSR key == key,
//	  │                                                              │ certify, quote, PCR digest
//	  │ ◀── result: X.509-SVID for key ───────────────────────────── │
//
// What each step proves: the certificate, that the EK lives in a TPM of that maker; the
// credential, that the AK lives beside the EK; certify, that the agent's key lives there too
// and never left; the quote, what the machine booted. The nonce makes it now, the key in the
// qualifying data makes it this connection.
//
// Event log and IMA log come with a later Version of the messages; a receiver tolerates
// fields it does not know.
package tpm
