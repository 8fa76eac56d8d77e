// SPDX-License-Identifier: Apache-2.0

// Package keys keeps the private keys of the trust domain's authorities. A Manager makes a key
// under a name, durably, and gives it out for signing; whether it can ever be read is the
// manager's own affair (Disk: by root; TPM and PKCS11: by nobody).
package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
)

// Type of a key, in SPIRE's words.
type Type string

// The types. ECP256 is what "" means.
const (
	ECP256  Type = "ec-p256"
	ECP384  Type = "ec-p384"
	RSA2048 Type = "rsa-2048"
	RSA4096 Type = "rsa-4096"
)

// Types are all of them.
var Types = []Type{ECP256, ECP384, RSA2048, RSA4096}

// Manager holds private keys by name. A name is 1 to 128 letters, digits and hyphens. Managers are
// safe for concurrent use, and so are their signers.
type Manager interface {
	// Generate makes a key that survives a crash from the moment that it returns. A name that
	// is taken is an error wrapping fs.ErrExist.
	Generate(ctx context.Context, name string, t Type) (crypto.Signer, error)
	// Open returns a key that was made before; an error wrapping fs.ErrNotExist if there is none.
	Open(ctx context.Context, name string) (crypto.Signer, error)
	// Delete removes a key; none of that name is no error.
	Delete(ctx context.Context, name string) error
	// List returns the names of all keys.
	List(ctx context.Context) ([]string, error)
	// Close ends the use of the manager and of its signers.
	Close() error
}

func generate(t Type) (crypto.Signer, error) {
	switch t {
	case ECP256, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, unknown(t)
}

func unknown(t Type) error { return fmt.Errorf("there is no key type %q: write one of %q", t, Types) }

func checkName(name string) error {
	ok := len(name) >= 1 && len(name) <= 128
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%q can not name a key: use 1 to 128 letters, digits and hyphens", name)
	}
	return nil
}
