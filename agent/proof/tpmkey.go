// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/assay-id/assay/tpm/device"
)

// tpmKey is the part of an Attestor whose node keys never leave the TPM. Each attestation makes a
// new one.
type tpmKey struct {
	device *device.Device
	key    *device.Key
	unique [32]byte // what key was made from
}

func (t *tpmKey) make() error {
	var unique [32]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return fmt.Errorf("random: %w", err)
	}
	_, err := t.Restore(unique[:])
	return err
}

// Save returns the 32 bytes from which the TPM, and only this TPM, makes the newest key
// again. They are no secret.
func (t *tpmKey) Save(key crypto.Signer) ([]byte, error) {
	if key != crypto.Signer(t.key) {
		return nil, errors.New("the node's key is not the newest key of the TPM")
	}
	return t.unique[:], nil
}

// Restore makes the key again.
func (t *tpmKey) Restore(saved []byte) (crypto.Signer, error) {
	if len(saved) != len(t.unique) {
		return nil, fmt.Errorf("saved TPM key is %d bytes long, want %d", len(saved), len(t.unique))
	}
	unique := [32]byte(saved)
	key, err := t.device.NewKey(unique)
	if err != nil {
		return nil, err
	}
	t.key, t.unique = key, unique
	return key, nil
}
