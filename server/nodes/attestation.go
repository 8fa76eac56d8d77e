// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/verify"
)

// Attestation is what an attestor found out about a new agent.
type Attestation struct {
	ID spiffeid.ID
	// Type is the attestor's.
	Type      string
	Selectors selectors.Set
	// CanReattest says that the agent can attest again at any time, so it never renews.
	CanReattest bool
	// Checks are the checks that passed, in order, for the log and for people.
	Checks []verify.Check
	// Pending, unless empty, says in one sentence why an operator has to approve the agent first
	// (Registry.Hold).
	Pending string
	// TPM is what a TPM attestation showed of the machine; nil otherwise.
	TPM *TPMState
}

// Fault says whose fault a failed attestation is.
type Fault int

const (
	// FaultMessage: what the agent sent is not usable (InvalidArgument).
	FaultMessage Fault = iota + 1
	// FaultRefused: what the agent sent was understood and is not good enough (PermissionDenied).
	FaultRefused
	// FaultServer: this server could not judge (Internal).
	FaultServer
	// FaultBusy: this server has no room to judge now (ResourceExhausted).
	FaultBusy
)

// AttestError is the verdict of an attestor that does not admit an agent. Its text is for the
// agent's operator and is sent to the agent.
type AttestError struct {
	Fault Fault
	Text  string
	Err   error // may be nil
}

func (e *AttestError) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *AttestError) Unwrap() error { return e.Err }
