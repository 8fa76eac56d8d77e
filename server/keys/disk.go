// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Disk keeps keys in a folder of mode 0700: one PEM file each (PKCS #8), mode 0600.
type Disk struct{ files folder }

// OpenDisk opens the folder, or makes it.
func OpenDisk(dir string) (*Disk, error) {
	files, err := openFolder(dir, ".pem")
	if err != nil {
		return nil, err
	}
	return &Disk{files}, nil
}

// Generate implements Manager.
func (d *Disk) Generate(ctx context.Context, name string, t Type) (crypto.Signer, error) {
	key, err := generate(t)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	return key, d.Import(ctx, name, key)
}

// Import keeps a key that was made elsewhere, as durably as Generate.
func (d *Disk) Import(_ context.Context, name string, key crypto.Signer) error {
	if err := checkName(name); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key %s: %w", name, err)
	}
	if err := d.files.write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return fmt.Errorf("keep key %s: %w", name, err)
	}
	return nil
}

// Open implements Manager.
func (d *Disk) Open(_ context.Context, name string) (crypto.Signer, error) {
	data, err := d.files.read(name)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	key, err := readPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged; restore it from a backup, or remove it to have a new key made: %w", d.files.path(name), err)
	}
	return key, nil
}

func readPEM(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no PEM block PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T can not sign", parsed)
	}
	return key, nil
}

// Delete implements Manager.
func (d *Disk) Delete(_ context.Context, name string) error { return d.files.delete(name) }

// List implements Manager.
func (d *Disk) List(context.Context) ([]string, error) { return d.files.list() }

// Close implements Manager.
func (d *Disk) Close() error { return nil }
