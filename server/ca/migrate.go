// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/store"
)

// openDir reads or makes the server's id, and opens the key manager if none was given.
func (c *CA) openDir() error {
	disk, err := keys.OpenDisk(c.cfg.Dir)
	if err != nil {
		return err
	}
	if c.cfg.Keys == nil {
		c.cfg.Keys = disk
	}
	c.serverID, err = ReadID(c.cfg.Dir)
	return err
}

// ReadID reads or makes the id of the server whose CA has that folder: a UUID.
func ReadID(dir string) (string, error) {
	path := filepath.Join(dir, "server-id")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data = []byte(uuid.NewString() + "\n")
		err = replaceFile(path, data)
	}
	if err != nil {
		return "", fmt.Errorf("the server's id: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(data)))
	if err != nil {
		return "", fmt.Errorf("%s holds no UUID; restore it from a backup, or remove it and the server makes new authorities: %w", path, err)
	}
	return id.String(), nil
}

func replaceFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// slotsFile is where the version before kept its X.509 authorities, certificates and PKCS #8 keys.
const slotsFile = "authorities.json"

type (
	slotFile  struct{ Certificate, Key []byte }
	slotsJSON struct {
		Current *slotFile `json:"current"`
		Next    *slotFile `json:"next"`
	}
)

// migrate takes over the authorities of the version before: keys, then journal and bundle, then
// the file goes. It may be repeated after a crash anywhere.
func (c *CA) migrate(ctx context.Context) error {
	path := filepath.Join(c.cfg.Dir, slotsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the CA's keys: %w", err)
	}
	if c.journal == 0 {
		importer, ok := c.cfg.Keys.(interface {
			Import(ctx context.Context, name string, key crypto.Signer) error
		})
		if !ok {
			c.cfg.Logger.Warn("the key manager can not take over keys; there are new authorities, and what the former ones signed stays valid", "file", path)
			return nil
		}
		s, err := c.readSlots(data)
		if err != nil {
			return fmt.Errorf("%s is damaged; restore it from a backup, or remove it to start with a new CA: %w", path, err)
		}
		if err := c.takeOver(ctx, s, importer.Import); err != nil {
			return fmt.Errorf("take over the authorities of %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove what has been taken over: %w", err)
	}
	return nil
}

func (c *CA) takeOver(ctx context.Context, s slots, keep func(context.Context, string, crypto.Signer) error) error {
	for _, a := range []*authority{s.current, s.next} {
		if a == nil {
			continue
		}
		if err := keep(ctx, a.keyName, a.key); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	revision, err := c.bundle.Edit(ctx, func(b Bundle) (txn store.Txn, err error) {
		for _, a := range []*authority{s.current, s.next} {
			if a != nil {
				a.sequence = b.Next()
				err = errors.Join(err, addCerts(b, &txn, a.chain))
			}
		}
		return txn, errors.Join(err, c.put(&txn, X509, s))
	})
	if err != nil {
		return err
	}
	c.journal = revision
	c.set(X509, s)
	return nil
}

func (c *CA) readSlots(data []byte) (slots, error) {
	var file slotsJSON
	if err := json.Unmarshal(data, &file); err != nil {
		return slots{}, err
	}
	current, err := c.readSlot(file.Current)
	if err != nil {
		return slots{}, err
	}
	next, err := c.readSlot(file.Next)
	return slots{current: current, next: next}, err
}

func (c *CA) readSlot(f *slotFile) (*authority, error) {
	if f == nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(f.Certificate)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || !mint.SamePublicKey(key.Public(), cert.PublicKey) {
		return nil, errors.New("a certificate and its key do not belong together")
	}
	if uris := cert.URIs; len(uris) != 1 || uris[0].String() != c.cfg.TrustDomain.IDString() {
		return nil, fmt.Errorf("its keys are not those of trust domain %s: correct trust_domain or choose another data_dir", c.cfg.TrustDomain.Name())
	}
	id := hex.EncodeToString(cert.SubjectKeyId)
	a := &authority{
		kind: X509, id: id, keyName: "x509-" + id, public: key.Public(), chain: []*x509.Certificate{cert}, anchor: bundle.Key(X509, id),
		notBefore: cert.NotBefore, notAfter: cert.NotAfter, published: c.cfg.Now(),
	}
	return a, a.open(key)
}
