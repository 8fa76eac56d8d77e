// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// folder holds one file per key, which is there as a whole or not at all.
type folder struct{ dir, suffix string }

func openFolder(dir, suffix string) (folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return folder{}, fmt.Errorf("make the folder of keys: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return folder{}, fmt.Errorf("protect the folder of keys: %w", err)
	}
	return folder{dir, suffix}, nil
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name+f.suffix) }

// write is durable when it returns, and fails with fs.ErrExist if the name is taken.
func (f folder) write(name string, data []byte) error {
	temporary := f.path(name) + ".new" // of a crash, perhaps
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	// A link, unlike a renaming, does not replace.
	if err := errors.Join(os.Link(temporary, f.path(name)), os.Remove(temporary)); err != nil {
		return err
	}
	return f.sync()
}

func (f folder) read(name string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return os.ReadFile(f.path(name))
}

func (f folder) delete(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	err := os.Remove(f.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete key %s: %w", name, err)
	}
	return f.sync()
}

func (f folder) list() ([]string, error) {
	files, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("list the keys: %w", err)
	}
	var names []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file.Name(), f.suffix); ok && checkName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

func (f folder) sync() error {
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
