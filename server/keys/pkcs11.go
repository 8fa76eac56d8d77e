// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/assay-id/assay/server/keys/pkcs11"
)

// PKCS11 keeps keys in an HSM, which they can not leave. Each is named there by its label: the prefix,
// then the key's name. All labels that begin with the prefix are this manager's.
type PKCS11 struct {
	helper *pkcs11.Helper
	prefix string
}

// OpenPKCS11 opens the token. Close closes the helper, and so does an error.
func OpenPKCS11(ctx context.Context, helper *pkcs11.Helper, prefix string) (*PKCS11, error) {
	m := &PKCS11{helper, prefix}
	defer context.AfterFunc(ctx, func() { _ = helper.Close() })() // a module that hangs must not hold the start up
	if _, err := m.List(ctx); err != nil {
		return nil, errors.Join(err, helper.Close())
	}
	return m, nil
}

// do asks the token something about a key.
func (m *PKCS11) do(ctx context.Context, what, name string, q pkcs11.Request) (pkcs11.Response, error) {
	if err := checkName(name); err != nil {
		return pkcs11.Response{}, err
	}
	q.Label = m.prefix + name
	a, err := m.helper.Do(ctx, q)
	switch pkcs11.KindOf(err) {
	case pkcs11.Exists:
		err = fs.ErrExist
	case pkcs11.NotFound:
		err = fs.ErrNotExist
	}
	if err == nil {
		return a, nil
	}
	return a, fmt.Errorf("%s key %s in the HSM: %w", what, name, err)
}

// Generate implements Manager.
func (m *PKCS11) Generate(ctx context.Context, name string, t Type) (crypto.Signer, error) {
	if t == "" {
		t = ECP256
	}
	if !slices.Contains(Types, t) {
		return nil, unknown(t)
	}
	a, err := m.do(ctx, "make", name, pkcs11.Request{Op: pkcs11.OpGenerate, Type: string(t)})
	return m.signer(name, a, err)
}

// Open implements Manager.
func (m *PKCS11) Open(ctx context.Context, name string) (crypto.Signer, error) {
	a, err := m.do(ctx, "open", name, pkcs11.Request{Op: pkcs11.OpFind})
	return m.signer(name, a, err)
}

func (m *PKCS11) signer(name string, a pkcs11.Response, err error) (crypto.Signer, error) {
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(a.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("read the public half of key %s in the HSM: %w", name, err)
	}
	return &tokenKey{m, name, public}, nil
}

// Delete implements Manager.
func (m *PKCS11) Delete(ctx context.Context, name string) error {
	_, err := m.do(ctx, "delete", name, pkcs11.Request{Op: pkcs11.OpDelete})
	return err
}

// List implements Manager.
func (m *PKCS11) List(ctx context.Context) ([]string, error) {
	a, err := m.helper.Do(ctx, pkcs11.Request{Op: pkcs11.OpList, Label: m.prefix})
	if err != nil {
		return nil, fmt.Errorf("list the keys in the HSM: %w", err)
	}
	var names []string
	for _, label := range a.Labels {
		if name, ok := strings.CutPrefix(label, m.prefix); ok && checkName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Close implements Manager.
func (m *PKCS11) Close() error { return m.helper.Close() }

// tokenKey signs in the HSM.
type tokenKey struct {
	m      *PKCS11
	name   string
	public crypto.PublicKey
}

// Public implements crypto.Signer.
func (k *tokenKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer: ECDSA, and RSA by PKCS #1 v1.5.
func (k *tokenKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	data, err := pkcs11.ToSign(k.public, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.name, err)
	}
	a, err := k.m.do(context.Background(), "sign with", k.name, pkcs11.Request{Op: pkcs11.OpSign, Data: data})
	if err != nil {
		return nil, err
	}
	signature, err := pkcs11.FromSigned(k.public, digest, opts.HashFunc(), a.Signature)
	if err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.name, err)
	}
	return signature, nil
}
