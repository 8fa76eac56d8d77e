// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/tpm/device"
)

// KeyManagerConfig is the block `key_manager "disk"`, `"memory"` or `"tpm"`.
type KeyManagerConfig struct {
	Type string `hcl:"type,label"`
	// Path of the TPM (default /dev/tpmrm0).
	Path string `hcl:"path,optional"`
	// EndorsementPassword of the TPM's endorsement hierarchy, if it has one.
	EndorsementPassword string `hcl:"endorsement_hierarchy_password,optional"`
}

func (p *prepared) readCA() error {
	for name, t := range map[string]string{"ca_key_type": p.CAKeyType, "jwt_key_type": p.JWTKeyType} {
		if !slices.Contains(keys.Types, keys.Type(t)) {
			return fmt.Errorf("%s %q: write one of %q", name, t, keys.Types)
		}
	}
	switch m := p.KeyManager; m.Type {
	case "disk", "memory":
		if m.Path != "" || m.EndorsementPassword != "" {
			return fmt.Errorf("key_manager %q takes no settings: remove them", m.Type)
		}
	case "tpm":
		if p.CAKeyType != string(keys.ECP256) || p.JWTKeyType != string(keys.ECP256) {
			return fmt.Errorf("key_manager \"tpm\" makes keys of type %s only: remove ca_key_type and jwt_key_type", keys.ECP256)
		}
		if m.Path == "" {
			m.Path = "/dev/tpmrm0"
		}
	default:
		return fmt.Errorf("there is no key_manager %q: write \"disk\", \"memory\" or \"tpm\"", m.Type)
	}
	return p.readUpstream()
}

// chip is a TPM as the key manager needs it.
type chip struct{ *device.Device }

// Key implements keys.Chip.
func (c chip) Key(unique [32]byte) (crypto.Signer, error) { return c.NewKey(unique) }

// openKeys opens the key manager.
func (p *prepared) openKeys(ctx context.Context, dir string) (keys.Manager, error) {
	switch m := p.KeyManager; m.Type {
	case "memory":
		return &keys.Memory{}, nil
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
	if s.keys, err = c.openKeys(ctx, dir); err != nil {
		return err
	}
	s.ca, err = ca.Open(ctx, ca.Config{
		Dir: dir, Keys: s.keys, TrustDomain: c.trustDomain, Store: s.store, Upstream: s.openUpstream(), TTL: c.caTTL,
		X509SVIDTTL: c.svidTTL, AgentTTL: c.agentTTL, JWTTTL: c.jwtTTL, JWTIssuer: c.JWTIssuer, Subject: c.subject, CRLs: c.crlURL,
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
