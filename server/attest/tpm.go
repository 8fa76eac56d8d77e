// SPDX-License-Identifier: Apache-2.0

// Package attest judges what agents show of themselves and of their machines, when they come and
// ever after: one attestor for each way to prove who they are, Rules for what machines may have
// booted and run, and Continuous, which asks again. Package server/nodes keeps the verdicts.
package attest

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/verify"
)

// TPM admits agents by their TPM (packages tpm and tpm/verify). The agent's ID is
// spiffe://<td>/spire/agent/tpm/<SHA-256 of the EK's SubjectPublicKeyInfo>.
type TPM struct {
	TrustDomain spiffeid.TrustDomain
	Policy      *verify.Policy
	// Rules are what the machines must have booted and run; nil is no rules.
	Rules *Rules
	// Continuous watches the machines afterwards, and knows which TPMs are spoken for now. Nil: nobody does.
	Continuous *Continuous
	// Memory for IMA logs; nil has no bounds.
	Memory *Memory
	Now    func() time.Time
	Rand   io.Reader // crypto/rand.Reader
}

// Type returns "tpm".
func (t *TPM) Type() string { return tpm.AttestorType }

// Attest runs one attestation: payload is a Hello, the answer to the challenge is Evidence; further
// challenges ask for more of the IMA log.
func (t *TPM) Attest(ctx context.Context, payload []byte, csrKey crypto.PublicKey, binding []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error) {
	hello, err := tpm.Decode[tpm.Hello](payload)
	if err != nil {
		return nodes.Attestation{}, malformed(err)
	}
	session, question, err := verify.Begin(t.Policy, hello, t.Now(), t.Rand)
	if err != nil {
		return nodes.Attestation{}, judged(err)
	}
	evidence, err := exchange[tpm.Challenge, tpm.Evidence](ctx, question, challenge)
	if err != nil {
		return nodes.Attestation{}, err
	}
	room := held{memory: t.Memory}
	defer room.release()
	var lost error
	verdict, err := session.Finish(verify.Proof{Evidence: evidence, CSRKey: csrKey, Binding: binding, More: func(m tpm.More) (c tpm.Continuation, err error) {
		if lost = room.grow(ctx, m.IMAOffset+tpm.MaxIMAChunk); lost != nil {
			return c, lost
		}
		c, lost = exchange[tpm.More, tpm.Continuation](ctx, m, challenge)
		return c, lost
	}}, t.Now())
	switch {
	case lost != nil:
		return nodes.Attestation{}, lost
	case err != nil:
		return nodes.Attestation{}, judged(err)
	}
	id, err := spiffeid.FromSegments(t.TrustDomain, "spire", "agent", tpm.AttestorType, verdict.Facts.EKHash.String())
	if err != nil {
		return nodes.Attestation{}, judged(err)
	}
	return t.admit(ctx, id, &verdict)
}

// admit holds a machine that proved itself against the rules and against what is known of it.
func (t *TPM) admit(ctx context.Context, id spiffeid.ID, v *verify.Verdict) (nodes.Attestation, error) {
	a := nodes.Attestation{ID: id, Type: tpm.AttestorType, CanReattest: true, Checks: v.Checks, Pending: v.Unvouched}
	state, err := newTPMState(v, t.Now())
	if err != nil {
		return nodes.Attestation{}, judged(err)
	}
	if a.Pending == "" {
		findings, err := t.Rules.judge(state, v)
		if err != nil {
			return nodes.Attestation{}, judged(err)
		}
		// A clone is told from a machine that breaks rules: nothing else about it can be relied on.
		if err := t.Continuous.notCloned(ctx, id, state); err != nil {
			return nodes.Attestation{}, err
		}
		if len(findings) > 0 {
			return nodes.Attestation{}, t.Continuous.refuse(ctx, id, findings)
		}
	}
	state.Former = t.Continuous.vouched(id)
	t.Continuous.remember(id, v.IMA, v.Files)
	a.Selectors, a.TPM = selectors.DeriveNode(&state.Facts), state
	return a, nil
}

// exchange sends a message as a challenge and reads the answer.
func exchange[Q, A tpm.Message](ctx context.Context, question Q, challenge func(context.Context, []byte) ([]byte, error)) (A, error) {
	var none A
	data, err := tpm.Encode(question)
	if err != nil {
		return none, judged(err)
	}
	answer, err := challenge(ctx, data)
	if err != nil {
		return none, err
	}
	a, err := tpm.Decode[A](answer)
	if err != nil {
		return none, malformed(err)
	}
	return a, nil
}

func malformed(err error) error {
	return &nodes.AttestError{Fault: nodes.FaultMessage, Text: "failed to attest", Err: err}
}

func judged(err error) error {
	fault := nodes.FaultServer
	if _, ok := errors.AsType[*verify.Refusal](err); ok {
		fault = nodes.FaultRefused
	}
	return &nodes.AttestError{Fault: fault, Text: "failed to attest", Err: err}
}

// breaks is the refusal of a machine that breaks rules.
func breaks(findings fmt.Stringer) error {
	return &nodes.AttestError{Fault: nodes.FaultRefused, Text: "failed to attest: the machine breaks the rules of its group:\n" + findings.String()}
}
