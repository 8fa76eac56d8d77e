// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
)

// TPM attests by the node's TPM: the endorsement key says which machine it is, a quote what
// it booted, and the node's own key never leaves the TPM. Each attestation makes a new key.
type TPM struct {
	Device *device.Device
	key    *device.Key
	unique [32]byte // what key was made from
	quoted bool     // the first challenge was answered; others ask for more of the IMA log
}

// Type returns "tpm".
func (t *TPM) Type() string { return tpm.AttestorType }

// Begin makes a new key in the TPM and says hello.
func (t *TPM) Begin(context.Context) ([]byte, crypto.Signer, error) {
	var unique [32]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return nil, nil, fmt.Errorf("random: %w", err)
	}
	key, err := t.Device.NewKey(unique)
	if err != nil {
		return nil, nil, err
	}
	hello, err := t.Device.Hello(key)
	if err != nil {
		return nil, nil, err
	}
	payload, err := tpm.Encode(hello)
	if err != nil {
		return nil, nil, err
	}
	t.key, t.unique, t.quoted = key, unique, false
	return payload, key, nil
}

// Answer activates the credential, certifies the key, quotes and sends the logs. Each challenge
// after the first asks for more of the IMA log.
func (t *TPM) Answer(_ context.Context, challenge, binding []byte) ([]byte, error) {
	if t.quoted {
		m, err := tpm.Decode[tpm.More](challenge)
		if err != nil {
			return nil, err
		}
		c, err := t.Device.More(m)
		if err != nil {
			return nil, err
		}
		return tpm.Encode(c)
	}
	c, err := tpm.Decode[tpm.Challenge](challenge)
	if err != nil {
		return nil, err
	}
	evidence, err := t.Device.Answer(t.key, c, binding)
	if err != nil {
		return nil, err
	}
	t.quoted = true
	return tpm.Encode(evidence)
}

// Requote answers a question of the server about the machine as it is now. key is that of the
// node's SVID: the newest one, or the one before when an attestation since then failed.
func (t *TPM) Requote(_ context.Context, key crypto.Signer, question, binding []byte, history tpm.History) ([]byte, error) {
	own, ok := key.(*device.Key)
	if !ok {
		return nil, fmt.Errorf("a %T is no key of a TPM", key)
	}
	q, err := tpm.Decode[tpm.Question](question)
	if err != nil {
		return nil, err
	}
	a, err := t.Device.Requote(own, q, binding, history)
	if err != nil {
		return nil, err
	}
	return tpm.Encode(a)
}

// Save returns the 32 bytes from which the TPM, and only this TPM, makes the newest key
// again. They are no secret.
func (t *TPM) Save(key crypto.Signer) ([]byte, error) {
	if key != crypto.Signer(t.key) {
		return nil, errors.New("the node's key is not the newest key of the TPM")
	}
	return t.unique[:], nil
}

// Restore makes the key again.
func (t *TPM) Restore(saved []byte) (crypto.Signer, error) {
	if len(saved) != len(t.unique) {
		return nil, fmt.Errorf("saved TPM key is %d bytes long, want %d", len(saved), len(t.unique))
	}
	unique := [32]byte(saved)
	key, err := t.Device.NewKey(unique)
	if err != nil {
		return nil, err
	}
	t.key, t.unique = key, unique
	return key, nil
}
