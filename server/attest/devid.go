// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto"
	"errors"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/devid"
)

// DevID admits agents by a DevID certificate and the TPM that it lives in, as SPIRE's tpm_devid
// does: the same messages, IDs, selectors and codes. Agents attest again instead of renewing.
type DevID struct {
	TrustDomain spiffeid.TrustDomain
	Roots       devid.Roots
	Now         func() time.Time
	Rand        io.Reader // crypto/rand.Reader
}

// Type returns "tpm_devid".
func (d *DevID) Type() string { return devid.Type }

// Attest runs one attestation.
func (d *DevID) Attest(ctx context.Context, payload []byte, _ crypto.PublicKey, _ []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error) {
	session, question, err := devid.Begin(d.Roots, payload, d.Now(), d.Rand)
	if err != nil {
		return nodes.Attestation{}, devidError(err)
	}
	answer, err := challenge(ctx, question)
	if err != nil {
		return nodes.Attestation{}, err
	}
	if err := session.Finish(answer); err != nil {
		return nodes.Attestation{}, devidError(err)
	}
	id, err := spiffeid.FromSegments(d.TrustDomain, "spire", "agent", devid.Type, fingerprint(session.Leaf))
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "failed to create agent ID", Err: err}
	}
	var out []selectors.Selector
	emit := func(name, value string) {
		if value != "" {
			out = append(out, selectors.Selector{Type: devid.Type, Value: name + ":" + value})
		}
	}
	emit("subject:cn", session.Leaf.Subject.CommonName)
	emit("issuer:cn", session.Leaf.Issuer.CommonName)
	for _, chain := range session.Chains {
		for _, ca := range chain[1:] {
			emit("ca:fingerprint", fingerprint(ca))
		}
	}
	return nodes.Attestation{ID: id, Type: devid.Type, Selectors: selectors.NewSet(out...), CanReattest: true}, nil
}

// devidError: SPIRE answers InvalidArgument to whatever is the agent's fault.
func devidError(err error) error {
	fault := nodes.FaultMessage
	if errors.Is(err, devid.ErrServer) {
		fault = nodes.FaultServer
	}
	return &nodes.AttestError{Fault: fault, Text: err.Error()}
}
