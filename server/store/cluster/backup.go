// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// A backup is a member's database as of one revision, followed by the SHA-256 of it: the file
// that `etcdctl snapshot save` writes.

// pageSize divides the size of every database.
const pageSize = 512

var errNotBackup = errors.New("it is not a backup, or a part of it is missing")

// Backup writes the store's content, as of one moment, to a file, while the server runs. The
// file replaces one of the same name once it is whole and checked.
func Backup(ctx context.Context, c Config, path string) (size int64, err error) {
	client, err := c.connect()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	f, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	content, err := client.Snapshot(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask the store for its content: %w", explain(err))
	}
	defer content.Close()
	check := &trailer{to: f, sum: sha256.New()}
	if size, err = io.Copy(check, content); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	if err := check.verify(size); err != nil {
		return 0, fmt.Errorf("the store's content did not arrive whole: %w; try again", err)
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), path)); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	return size, nil
}

// trailer passes on what is written and compares its last 32 bytes with the hash of the rest.
type trailer struct {
	to   io.Writer
	sum  hash.Hash
	last []byte // the 32 bytes that may be the hash
}

func (t *trailer) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if n := len(t.last) - sha256.Size; n > 0 {
		t.sum.Write(t.last[:n])
		t.last = append(t.last[:0], t.last[n:]...)
	}
	return t.to.Write(p)
}

func (t *trailer) verify(size int64) error {
	if size%pageSize != sha256.Size || !bytes.Equal(t.sum.Sum(nil), t.last) {
		return errNotBackup
	}
	return nil
}

// copyDatabase writes the database that a backup holds, checked, without its hash.
func copyDatabase(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	check := &trailer{to: out, sum: sha256.New()}
	size, err := io.Copy(check, in)
	if err != nil {
		return err
	}
	if err := check.verify(size); err != nil {
		return err
	}
	return errors.Join(out.Truncate(size-sha256.Size), out.Sync(), out.Close())
}
