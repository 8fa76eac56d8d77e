// SPDX-License-Identifier: Apache-2.0

// Package tpm holds the messages and types of node attestation by TPM. It issues no TPM
// command and judges nothing: tpm/device answers, tpm/verify judges.
//
// The messages are carried as opaque bytes in SPIRE's AttestAgent stream under the attestor type "tpm". Each
// is a JSON document; the logs of Evidence, Continuation and Answer follow it as they are, since as base64 they
// cost a server more than a signature:
//
//	message := JSON document │ size u32 (big-endian), boot log (Evidence) │ size u32, part of the IMA log
//
//	agent (tpm/device)                                        server (tpm/verify)
//	  │ NV_Read EK certificate, CreatePrimary EK, AK, key            │
//	  │ ── payload: Hello{EK certificates, EK, AK, key} ───────────▶ │ certificate path and profile,
//	  │                                                              │ EK, AK and key attributes
//	  │                                                              │ MakeCredential(EK, Name(AK), secret)
//	  │ ◀── challenge: Challenge{credential, nonce, PCRs} ────────── │ nonce: 32 bytes, once, 60 s
//	  │ ActivateCredential(AK, EK) → secret                          │
//	  │ q = QualifyingData(nonce, key, TLS binding, secret)          │
//	  │ Certify(key, AK, q)                                          │
//	  │ PCR_Read, Quote(AK, q, PCRs); then read the logs             │
//	  │ ── challenge_response: Evidence{secret, certify, quote,      │
//	  │         boot log, IMA log} ────────────────────────────────▶ │ secret, CSR key == key,
//	  │                                                              │ certify, quote, PCR digest
//	  │ ◀── challenge: More{offset} ──────────────────────────────── │ while the IMA log goes on
//	  │ ── challenge_response: Continuation{IMA log} ──────────────▶ │ replay of both logs to the quote
//	  │ ◀── result: X.509-SVID for key ───────────────────────────── │
//
// What each step proves: the certificate, that the EK lives in a TPM of that maker; the
// credential, that the AK lives beside the EK; certify, that the agent's key lives there too
// and never left; the quote, what the machine booted, event by event where a log replays to it. The
// nonce makes it now, key and binding in the qualifying data make it this connection.
//
// Afterwards, in the stream Node.Requote of that key's mTLS connection, the server asks again and again:
//
//	│ ◀── Question{nonce, PCRs, offset} ────────────────────────── │
//	│ q = RequoteData(nonce, key, TLS binding, history)            │
//	│ PCR_Read, Quote(AK, q, PCRs); then read the IMA log          │
//	│ ── Answer{quote, IMA log from the offset, history} ────────▶ │ same boot, same PCRs, IMA log goes on
package tpm
