// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"crypto"
	"errors"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/verify"
)

// TPM admits agents by their TPM (packages tpm and tpm/verify). The agent's ID is
// spiffe://<td>/spire/agent/tpm/<SHA-256 of the EK's SubjectPublicKeyInfo>.
type TPM struct {
	TrustDomain spiffeid.TrustDomain
	Policy      *verify.Policy
	Now         func() time.Time
	Rand        io.Reader // crypto/rand.Reader
}

// Type returns "tpm".
func (t *TPM) Type() string { return tpm.AttestorType }

// Attest runs one attestation: payload is a Hello, the answer to the challenge is Evidence.
func (t *TPM) Attest(ctx context.Context, payload []byte, csrKey crypto.PublicKey, binding []byte, challenge func(context.Context, []byte) ([]byte, error)) (Attestation, error) {
	hello, err := tpm.Decode[tpm.Hello](payload)
	if err != nil {
		return Attestation{}, &AttestError{Fault: FaultMessage, Text: "failed to attest", Err: err}
	}
	session, question, err := verify.Begin(t.Policy, hello, t.Now(), t.Rand)
	if err != nil {
		return Attestation{}, judged(err)
	}
	data, err := tpm.Encode(question)
	if err != nil {
		return Attestation{}, judged(err)
	}
	answer, err := challenge(ctx, data)
	if err != nil {
		return Attestation{}, err
	}
	evidence, err := tpm.Decode[tpm.Evidence](answer)
	if err != nil {
		return Attestation{}, &AttestError{Fault: FaultMessage, Text: "failed to attest", Err: err}
	}
	verdict, err := session.Finish(verify.Proof{Evidence: evidence, CSRKey: csrKey, Binding: binding, More: more(ctx, challenge)}, t.Now())
	if err != nil {
		return Attestation{}, judged(err)
	}
	id, err := spiffeid.FromSegments(t.TrustDomain, "spire", "agent", tpm.AttestorType, verdict.Facts.EKHash.String())
	if err != nil {
		return Attestation{}, judged(err)
	}
	return Attestation{
		ID: id, Type: tpm.AttestorType, Selectors: selectors.DeriveNode(&verdict.Facts), CanReattest: true,
		Checks: verdict.Checks, TPM: &verdict,
	}, nil
}

// more asks for the rest of the IMA log as one challenge after the other.
func more(ctx context.Context, challenge func(context.Context, []byte) ([]byte, error)) func(tpm.More) (tpm.Continuation, error) {
	return func(m tpm.More) (tpm.Continuation, error) {
		question, err := tpm.Encode(m)
		if err != nil {
			return tpm.Continuation{}, err
		}
		answer, err := challenge(ctx, question)
		if err != nil {
			return tpm.Continuation{}, err
		}
		return tpm.Decode[tpm.Continuation](answer)
	}
}

// judged gives an error of this package's parts its fault. Errors of the stream have one already.
func judged(err error) error {
	fault := FaultServer
	if _, ok := errors.AsType[*verify.Refusal](err); ok {
		fault = FaultRefused
	}
	return &AttestError{Fault: fault, Text: "failed to attest", Err: err}
}
