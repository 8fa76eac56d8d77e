// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
)

// softKey is the part of an Attestor whose node keys live in memory, and in the agent's data folder.
type softKey struct{}

func (softKey) make() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	return key, nil
}

// Save returns the private key, PKCS#8.
func (softKey) Save(key crypto.Signer) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// Restore reads what Save wrote.
func (softKey) Restore(data []byte) (crypto.Signer, error) {
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
