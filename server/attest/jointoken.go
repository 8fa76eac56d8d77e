// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
)

// JoinToken admits the agent that knows a token. It proves nothing about the machine: there
// are no selectors, and the agent renews its SVID instead of attesting again.
type JoinToken struct {
	TrustDomain spiffeid.TrustDomain
	Tokens      *nodes.Registry
}

// Type returns "join_token".
func (j *JoinToken) Type() string { return nodes.JoinTokenType }

// Attest spends the token that the payload is. There is no challenge.
func (j *JoinToken) Attest(ctx context.Context, payload []byte, _ crypto.PublicKey, _ []byte, _ func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error) {
	token := string(payload)
	if err := j.Tokens.UseJoinToken(ctx, token); err != nil {
		if _, ok := errors.AsType[*nodes.AttestError](err); ok {
			return nodes.Attestation{}, err
		}
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "failed to attest", Err: err}
	}
	id, err := nodes.JoinTokenAgent(j.TrustDomain, token)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "failed to attest", Err: err}
	}
	return nodes.Attestation{ID: id, Type: nodes.JoinTokenType}, nil
}
