// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/tpm/device"
)

// KeyManagerConfig is the block `key_manager "disk"`, `"memory"`, `"tpm"` or `"pkcs11"`.
type KeyManagerConfig struct {
	Type string `hcl:"type,label"`
	// Path of the TPM (default /dev/tpmrm0).
	Path string `hcl:"path,optional"`
	// EndorsementPassword of the TPM's endorsement hierarchy, if it has one.
	EndorsementPassword string `hcl:"endorsement_hierarchy_password,optional"`

	// Module is the HSM vendor's PKCS #11 library, which assay-pkcs11 loads, not the server.
	Module string `hcl:"module,optional"`
	// TokenLabel or Slot, or both, say which token.
	TokenLabel string `hcl:"token_label,optional"`
	Slot       *int   `hcl:"slot,optional"`
	// PINPath is a file of mode 0600 with the token's user PIN.
	PINPath string `hcl:"pin_path,optional"`
	// KeyLabelPrefix begins the labels of all keys (default "assay/"); this server's id follows.
	KeyLabelPrefix string `hcl:"key_label_prefix,optional"`
	// HelperPath of assay-pkcs11 (default: beside assay-server).
	HelperPath string `hcl:"helper_path,optional"`
}

// others reports whether settings stand there that are of other types.
func (m KeyManagerConfig) others() bool {
	switch m.Type {
	case "tpm":
		m.Path, m.EndorsementPassword = "", ""
	case "pkcs11":
		m.Module, m.TokenLabel, m.Slot, m.PINPath, m.KeyLabelPrefix, m.HelperPath = "", "", nil, "", "", ""
	}
	return m != KeyManagerConfig{Type: m.Type}
}

func (p *prepared) readCA() error {
	for name, t := range map[string]string{"ca_key_type": p.CAKeyType, "jwt_key_type": p.JWTKeyType} {
		if !slices.Contains(keys.Types, keys.Type(t)) {
			return fmt.Errorf("%s %q: write one of %q", name, t, keys.Types)
		}
	}
	switch m := p.KeyManager; {
	case !slices.Contains([]string{"disk", "memory", "tpm", "pkcs11"}, m.Type):
		return fmt.Errorf("there is no key_manager %q: write \"disk\", \"memory\", \"tpm\" or \"pkcs11\"", m.Type)
	case m.others() && (m.Type == "disk" || m.Type == "memory"):
		return fmt.Errorf("key_manager %q takes no settings: remove them", m.Type)
	case m.others():
		return fmt.Errorf("key_manager %q has settings that belong to another type: remove them", m.Type)
	case m.Type == "pkcs11":
		if err := m.readPKCS11(); err != nil {
			return fmt.Errorf("key_manager \"pkcs11\": %w", err)
		}
	case m.Type == "tpm":
		if p.CAKeyType != string(keys.ECP256) || p.JWTKeyType != string(keys.ECP256) {
			return fmt.Errorf("key_manager \"tpm\" makes keys of type %s only: remove ca_key_type and jwt_key_type", keys.ECP256)
		}
		if m.Path == "" {
			m.Path = "/dev/tpmrm0"
		}
	}
	return p.readUpstream()
}

// chip is a TPM as the key manager needs it.
type chip struct{ *device.Device }

// Key implements keys.Chip.
func (c chip) Key(unique [32]byte) (crypto.Signer, error) { return c.NewKey(unique) }

// openKeys opens the key manager.
func (p *prepared) openKeys(ctx context.Context, dir string, log *slog.Logger) (keys.Manager, error) {
	switch m := p.KeyManager; m.Type {
	case "memory":
		return &keys.Memory{}, nil
	case "pkcs11":
		return m.openPKCS11(ctx, dir, log)
	case "tpm":
		d, err := device.Open(ctx, device.Config{Path: m.Path, EndorsementPassword: m.EndorsementPassword, Logs: &device.Logs{}})
		if err != nil {
			return nil, fmt.Errorf("key_manager: %w", err)
		}
		manager, err := keys.OpenTPM(dir, chip{d})
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		return manager, nil
	}
	return keys.OpenDisk(dir)
}

// openCA opens the key manager and the CA upon it.
func (s *Server) openCA(ctx context.Context) (err error) {
	c, dir := s.conf, filepath.Join(s.conf.DataDir, "ca")
	if s.keys, err = c.openKeys(ctx, dir, s.log); err != nil {
		return err
	}
	s.ca, err = ca.Open(ctx, ca.Config{
		Dir: dir, Keys: s.keys, TrustDomain: c.trustDomain, Store: s.store, Upstream: s.openUpstream(), TTL: c.caTTL,
		X509SVIDTTL: c.svidTTL, AgentTTL: c.agentTTL, JWTTTL: c.jwtTTL, JWTIssuer: c.JWTIssuer, Subject: c.subject, CRLs: c.crlURL, NameConstraints: c.CANameConstraints,
		X509KeyType: keys.Type(c.CAKeyType), JWTKeyType: keys.Type(c.JWTKeyType), WITKeyType: keys.Type(c.JWTKeyType),
		MaxAge: c.maxAge, Acked: s.streams.Behind, Logger: s.log,
	})
	if err != nil {
		return errors.Join(err, s.closeUpstream(), s.keys.Close())
	}
	return nil
}

func (s *Server) closeCA() {
	s.ca.Close()
	if err := errors.Join(s.closeUpstream(), s.keys.Close()); err != nil {
		s.log.Warn("closing the CA", "error", err)
	}
}
