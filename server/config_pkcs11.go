// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/keys/pkcs11"
)

func (m *KeyManagerConfig) readPKCS11() error {
	if m.TokenLabel == "" && m.Slot == nil {
		return errors.New("write token_label, or slot, to say which token")
	}
	if m.Slot != nil && *m.Slot < 0 {
		return fmt.Errorf("slot %d is negative", *m.Slot)
	}
	if m.KeyLabelPrefix == "" {
		m.KeyLabelPrefix = "assay/"
	}
	if len(m.KeyLabelPrefix) > 64 {
		return fmt.Errorf("key_label_prefix has %d bytes: write at most 64", len(m.KeyLabelPrefix))
	}
	if m.HelperPath == "" {
		server, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the program beside which assay-pkcs11 lies; set helper_path: %w", err)
		}
		m.HelperPath = filepath.Join(filepath.Dir(server), "assay-pkcs11")
	}
	for _, path := range []struct{ name, value string }{{"module", m.Module}, {"pin_path", m.PINPath}, {"helper_path", m.HelperPath}} {
		if !filepath.IsAbs(path.value) {
			return fmt.Errorf("%s %q: write an absolute path", path.name, path.value)
		}
	}
	return nil
}

// openPKCS11 opens the token. Its keys are this server's alone, also if others use the same token:
// each deletes what nobody knows of among its own.
func (m *KeyManagerConfig) openPKCS11(ctx context.Context, dir string, log *slog.Logger) (keys.Manager, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the CA's folder: %w", err)
	}
	id, err := ca.ReadID(dir)
	if err != nil {
		return nil, err
	}
	open := pkcs11.Open{Module: m.Module, TokenLabel: m.TokenLabel}
	if m.Slot != nil {
		slot := uint64(*m.Slot)
		open.Slot = &slot
	}
	helper := pkcs11.NewHelper(pkcs11.Config{
		Program: m.HelperPath, Open: open, PINFile: pkcs11.PINFile{Path: m.PINPath, Refused: filepath.Join(dir, "pin-refused")}, Logger: log,
	})
	manager, err := keys.OpenPKCS11(ctx, helper, m.KeyLabelPrefix+id+"/")
	if err != nil {
		return nil, fmt.Errorf("key_manager \"pkcs11\": %w", err)
	}
	return manager, nil
}
