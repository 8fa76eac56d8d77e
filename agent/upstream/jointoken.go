// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
)

// JoinToken attests with a token that an operator made (SPIRE's join_token). A token works
// once; afterwards the SVID is renewed, and its key is kept in the agent's data folder.
type JoinToken struct{ Token string }

// Type returns "join_token".
func (j JoinToken) Type() string { return "join_token" }

// Begin sends the token, raw.
func (j JoinToken) Begin(context.Context) ([]byte, crypto.Signer, error) {
	if j.Token == "" {
		return nil, nil, errors.New("no join token: make one with `assay token create` and set join_token in the agent's configuration")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make node key: %w", err)
	}
	return []byte(j.Token), key, nil
}

// Answer fails: join tokens have no challenge.
func (j JoinToken) Answer(_ context.Context, _, _ []byte) ([]byte, error) {
	return nil, errors.New("the server sent a challenge, which join_token does not have")
}

// Save returns the private key, PKCS#8.
func (j JoinToken) Save(key crypto.Signer) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// Restore reads what Save wrote.
func (j JoinToken) Restore(data []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(data)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can not sign", key)
	}
	return signer, nil
}
