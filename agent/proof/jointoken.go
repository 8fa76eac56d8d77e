// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"crypto"
	"errors"
)

// JoinToken attests with a token that an operator made (SPIRE's join_token). A token works
// once; afterwards the SVID is renewed, and its key is kept in the agent's data folder.
type JoinToken struct {
	softKey
	Token string
}

// Type returns "join_token".
func (j JoinToken) Type() string { return "join_token" }

// Begin sends the token, raw.
func (j JoinToken) Begin(context.Context) ([]byte, crypto.Signer, error) {
	if j.Token == "" {
		return nil, nil, errors.New("no join token: make one with `assay token create` and set join_token in the agent's configuration")
	}
	key, err := j.make()
	return []byte(j.Token), key, err
}

// Answer fails: join tokens have no challenge.
func (j JoinToken) Answer(_ context.Context, _, _ []byte) ([]byte, error) {
	return nil, errors.New("the server sent a challenge, which join_token does not have")
}
