// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
)

// Chip is a TPM that makes the same P-256 signing key from the same 32 bytes, in this TPM only
// (tpm/device.Device.NewKey).
type Chip interface {
	Key(unique [32]byte) (crypto.Signer, error)
	Close() error
}

// TPM keeps keys that never leave a TPM 2.0. The folder holds, per key, 32 random bytes from which
// this TPM makes it again, and its public key: a copy of the folder signs nothing elsewhere, and
// without the bytes the key is gone. It makes keys of ECP256 only, the curve of every TPM.
type TPM struct {
	files folder
	chip  Chip
}

// tpmFile is one key's file, JSON.
type tpmFile struct {
	Unique    []byte `json:"unique"`
	PublicKey []byte `json:"public_key"` // PKIX
}

// OpenTPM opens the folder, or makes it. Close closes the chip.
func OpenTPM(dir string, chip Chip) (*TPM, error) {
	files, err := openFolder(dir, ".tpm")
	if err != nil {
		return nil, err
	}
	return &TPM{files, chip}, nil
}

// Generate implements Manager.
func (m *TPM) Generate(_ context.Context, name string, t Type) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if t != ECP256 && t != "" {
		return nil, fmt.Errorf("make key %s: a TPM makes keys of type %s, not %q; set ca_key_type and jwt_key_type to that", name, ECP256, t)
	}
	var unique [32]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	key, err := m.chip.Key(unique)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	data, err := json.Marshal(tpmFile{unique[:], public})
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	if err := m.files.write(name, data); err != nil {
		return nil, fmt.Errorf("keep key %s: %w", name, err)
	}
	return key, nil
}

// Open implements Manager. A key of another TPM is an error.
func (m *TPM) Open(_ context.Context, name string) (crypto.Signer, error) {
	data, err := m.files.read(name)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	unique, public, err := readTPMFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged; restore it from a backup, or remove it to have a new key made: %w", m.files.path(name), err)
	}
	key, err := m.chip.Key(unique)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	if k, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(public) {
		return nil, fmt.Errorf("%s was made by another TPM; use that one, or remove the file to have a new key made", m.files.path(name))
	}
	return key, nil
}

func readTPMFile(data []byte) (unique [32]byte, public crypto.PublicKey, err error) {
	var file tpmFile
	if err := json.Unmarshal(data, &file); err != nil {
		return unique, nil, err
	}
	if len(file.Unique) != len(unique) {
		return unique, nil, errors.New("it does not hold 32 bytes")
	}
	public, err = x509.ParsePKIXPublicKey(file.PublicKey)
	return [32]byte(file.Unique), public, err
}

// Delete implements Manager.
func (m *TPM) Delete(_ context.Context, name string) error { return m.files.delete(name) }

// List implements Manager.
func (m *TPM) List(context.Context) ([]string, error) { return m.files.list() }

// Close implements Manager.
func (m *TPM) Close() error { return m.chip.Close() }
