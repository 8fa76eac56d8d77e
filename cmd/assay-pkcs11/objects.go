// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package main

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/assay-id/assay/server/keys/pkcs11"
)

// kind is how a type of key is made.
type kind struct {
	mechanism uint
	public    []*p11.Attribute
	private   []*p11.Attribute
}

func ec(curve elliptic.Curve) kind {
	return kind{p11.CKM_EC_KEY_PAIR_GEN,
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_EC_PARAMS, pkcs11.ECParams(curve))},
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_DERIVE, false)}}
}

func rsa(bits int) kind {
	return kind{p11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_MODULUS_BITS, bits), p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})},
		[]*p11.Attribute{p11.NewAttribute(p11.CKA_DECRYPT, false), p11.NewAttribute(p11.CKA_UNWRAP, false)}}
}

var kinds = map[string]kind{"ec-p256": ec(elliptic.P256()), "ec-p384": ec(elliptic.P384()), "rsa-2048": rsa(2048), "rsa-4096": rsa(4096)}

func class(c uint) *p11.Attribute          { return p11.NewAttribute(p11.CKA_CLASS, c) }
func labelled(label string) *p11.Attribute { return p11.NewAttribute(p11.CKA_LABEL, label) }

// search finds objects. Private ones are shown only to who is logged in: none is none only if we were.
func (t *token) search(s p11.SessionHandle, template ...*p11.Attribute) (found []p11.ObjectHandle, err error) {
	if err := t.ctx.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	for {
		some, _, err := t.ctx.FindObjects(s, 100)
		if err != nil {
			return nil, fmt.Errorf("search: %w", err)
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	if err := t.ctx.FindObjectsFinal(s); err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	info, err := t.ctx.GetSessionInfo(s)
	if err == nil && info.State != p11.CKS_RW_USER_FUNCTIONS {
		err = p11.Error(p11.CKR_USER_NOT_LOGGED_IN)
	}
	return found, err
}

// attributes reads some, each of which must be there.
func (t *token) attributes(s p11.SessionHandle, o p11.ObjectHandle, types ...uint) ([][]byte, error) {
	var want []*p11.Attribute
	for _, a := range types {
		want = append(want, p11.NewAttribute(a, nil))
	}
	got, err := t.ctx.GetAttributeValue(s, o, want)
	if err != nil {
		return nil, fmt.Errorf("read a key's attributes: %w", err)
	}
	if len(got) != len(types) {
		return nil, errors.New("read a key's attributes: the module returns fewer than were asked for")
	}
	var values [][]byte
	for _, a := range got {
		values = append(values, a.Value)
	}
	return values, nil
}

// lookUp finds a private key, checks that it can not leave the token, and returns its public half.
func (t *token) lookUp(l *login, s p11.SessionHandle, label string) (key, []byte, error) {
	found, err := t.search(s, class(p11.CKO_PRIVATE_KEY), labelled(label))
	switch {
	case err != nil:
		return key{}, nil, err
	case len(found) == 0:
		return key{}, nil, &pkcs11.Error{Kind: pkcs11.NotFound, Text: fmt.Sprintf("the token has no key %q", label)}
	case len(found) > 1:
		return key{}, nil, fmt.Errorf("the token has %d keys of label %q", len(found), label)
	}
	values, err := t.attributes(s, found[0], p11.CKA_KEY_TYPE, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE)
	if err != nil {
		return key{}, nil, err
	}
	if len(values[0]) != 8 || !slices.Equal(values[1], []byte{1}) || !slices.Equal(values[2], []byte{0}) {
		return key{}, nil, fmt.Errorf("key %q could be read out of the token (CKA_SENSITIVE %x, CKA_EXTRACTABLE %x): it is not used", label, values[1], values[2])
	}
	publics, err := t.search(s, class(p11.CKO_PUBLIC_KEY), labelled(label))
	if err != nil {
		return key{}, nil, err
	}
	if len(publics) != 1 {
		return key{}, nil, fmt.Errorf("the token has %d public halves of key %q, not one", len(publics), label)
	}
	k, public, err := t.public(s, publics[0], binary.NativeEndian.Uint64(values[0]))
	if err != nil {
		return key{}, nil, fmt.Errorf("key %q: %w", label, err)
	}
	k.handle = found[0]
	l.keys.Store(label, k)
	return k, public, nil
}

// public reads a public key of a type (CKA_KEY_TYPE).
func (t *token) public(s p11.SessionHandle, o p11.ObjectHandle, keyType uint64) (k key, public []byte, err error) {
	var first, second uint
	var read func(first, second []byte) ([]byte, error)
	switch keyType {
	case p11.CKK_EC:
		k.mechanism, first, second, read = p11.CKM_ECDSA, p11.CKA_EC_PARAMS, p11.CKA_EC_POINT, pkcs11.ECPublicKey
	case p11.CKK_RSA:
		k.mechanism, first, second, read = p11.CKM_RSA_PKCS, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT, pkcs11.RSAPublicKey
	default:
		return k, nil, fmt.Errorf("its type is %#x, neither EC nor RSA", keyType)
	}
	values, err := t.attributes(s, o, first, second)
	if err != nil {
		return k, nil, err
	}
	public, err = read(values[0], values[1])
	return k, public, err
}

// List implements pkcs11.Token.
func (t *token) List(prefix string) (labels []string, err error) {
	err = t.with(func(_ *login, s p11.SessionHandle) error {
		labels = nil
		for _, c := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY} {
			found, err := t.search(s, class(c))
			if err != nil {
				return err
			}
			for _, o := range found {
				values, err := t.attributes(s, o, p11.CKA_LABEL)
				if errors.Is(err, p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID)) {
					continue // somebody else's, without a label
				}
				if err != nil {
					return err
				}
				if label := string(values[0]); strings.HasPrefix(label, prefix) && !slices.Contains(labels, label) {
					labels = append(labels, label)
				}
			}
		}
		return nil
	})
	return labels, err
}

// Generate implements pkcs11.Token.
func (t *token) Generate(label, keyType string) (public []byte, err error) {
	how, known := kinds[keyType]
	if !known {
		return nil, fmt.Errorf("there is no key type %q", keyType)
	}
	t.making.Lock()
	defer t.making.Unlock()
	err = t.with(func(l *login, s p11.SessionHandle) error {
		if there, err := t.search(s, labelled(label)); err != nil {
			return err
		} else if len(there) > 0 {
			return &pkcs11.Error{Kind: pkcs11.Exists, Text: fmt.Sprintf("the token has a key %q already", label)}
		}
		id := sha256.Sum256([]byte(label))
		both := []*p11.Attribute{p11.NewAttribute(p11.CKA_TOKEN, true), labelled(label), p11.NewAttribute(p11.CKA_ID, id[:20])}
		publicHalf := append(slices.Concat(both, how.public), p11.NewAttribute(p11.CKA_VERIFY, true))
		privateHalf := append(slices.Concat(both, how.private), p11.NewAttribute(p11.CKA_PRIVATE, true), p11.NewAttribute(p11.CKA_SIGN, true),
			p11.NewAttribute(p11.CKA_SENSITIVE, true), p11.NewAttribute(p11.CKA_EXTRACTABLE, false))
		publicKey, privateKey, err := t.ctx.GenerateKeyPair(s, []*p11.Mechanism{p11.NewMechanism(how.mechanism, nil)}, publicHalf, privateHalf)
		if err != nil {
			return fmt.Errorf("make a key of type %s: %w", keyType, err)
		}
		if _, public, err = t.lookUp(l, s, label); err != nil {
			// What is not as it must be shall not fill the token. The error is what counts.
			_, _ = t.ctx.DestroyObject(s, privateKey), t.ctx.DestroyObject(s, publicKey)
		}
		return err
	})
	return public, err
}

// Find implements pkcs11.Token.
func (t *token) Find(label string) (public []byte, err error) {
	err = t.with(func(l *login, s p11.SessionHandle) (err error) {
		_, public, err = t.lookUp(l, s, label)
		return err
	})
	return public, err
}

// Sign implements pkcs11.Token.
func (t *token) Sign(label string, data []byte) (signature []byte, err error) {
	err = t.with(func(l *login, s p11.SessionHandle) (err error) {
		var k key
		if known, ok := l.keys.Load(label); ok {
			k = known.(key)
		} else if k, _, err = t.lookUp(l, s, label); err != nil {
			return err
		}
		if err := t.ctx.SignInit(s, []*p11.Mechanism{p11.NewMechanism(k.mechanism, nil)}, k.handle); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		if signature, err = t.ctx.Sign(s, data); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		return nil
	})
	return signature, err
}

// Delete implements pkcs11.Token: the private half goes first, since one without it is no key.
func (t *token) Delete(label string) error {
	return t.with(func(l *login, s p11.SessionHandle) error {
		l.keys.Delete(label)
		for _, c := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY} {
			found, err := t.search(s, class(c), labelled(label))
			if err != nil {
				return err
			}
			for _, o := range found {
				if err := t.ctx.DestroyObject(s, o); err != nil {
					return fmt.Errorf("delete: %w", err)
				}
			}
		}
		return nil
	})
}
