// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"crypto"
	"fmt"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
)

// TPM attests by the node's TPM: the endorsement key says which machine it is, a quote what
// it booted, and the node's own key never leaves the TPM.
type TPM struct {
	tpmKey
	quoted bool // the first challenge was answered; others ask for more of the IMA log
}

// NewTPM attests by an open TPM.
func NewTPM(d *device.Device) *TPM { return &TPM{tpmKey: tpmKey{device: d}} }

// Type returns "tpm".
func (t *TPM) Type() string { return tpm.AttestorType }

// Begin makes a new key in the TPM and says hello.
func (t *TPM) Begin(context.Context) ([]byte, crypto.Signer, error) {
	if err := t.make(); err != nil {
		return nil, nil, err
	}
	hello, err := t.device.Hello(t.key)
	if err != nil {
		return nil, nil, err
	}
	payload, err := tpm.Encode(hello)
	if err != nil {
		return nil, nil, err
	}
	t.quoted = false
	return payload, t.key, nil
}

// Answer activates the credential, certifies the key, quotes and sends the logs. Each challenge
// after the first asks for more of the IMA log.
func (t *TPM) Answer(_ context.Context, challenge, binding []byte) ([]byte, error) {
	if t.quoted {
		m, err := tpm.Decode[tpm.More](challenge)
		if err != nil {
			return nil, err
		}
		c, err := t.device.More(m)
		if err != nil {
			return nil, err
		}
		return tpm.Encode(c)
	}
	c, err := tpm.Decode[tpm.Challenge](challenge)
	if err != nil {
		return nil, err
	}
	evidence, err := t.device.Answer(t.key, c, binding)
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
	a, err := t.device.Requote(own, q, binding, history)
	if err != nil {
		return nil, err
	}
	return tpm.Encode(a)
}
