// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/ima"
)

// GroupConfig is a block `node_group "name"` as it is written (HCL, or JSON): what is demanded of the nodes with a TPM that the
// inventory puts into the group. Nodes in none are of the group "default", if there is one.
type GroupConfig struct {
	Name string `hcl:"name,label" json:"name"`
	// Golden is a file that `assay tpm learn` wrote on a machine that is as all should be.
	Golden string `hcl:"golden,optional" json:"golden,omitempty"`
	// RequirePCRs are the PCRs that must have the values of Golden (default 0, 2, 4, 7).
	RequirePCRs []int `hcl:"require_pcrs,optional" json:"require_pcrs,omitempty"`
	// SecureBoot must be on.
	SecureBoot bool `hcl:"secure_boot,optional" json:"secure_boot,omitempty"`
	// DBX are SHA-256 hashes that the node's list of forbidden boot programs must hold.
	DBX []string `hcl:"dbx,optional" json:"dbx,omitempty"`
	// DBXOf are files that `assay tpm learn` wrote: what those machines' lists forbid, the node's must.
	DBXOf []string `hcl:"dbx_of,optional" json:"dbx_of,omitempty"`
	// Kernels, Initrds and Applications are SHA-256 digests. Kernel and initrd must be one of them; all
	// programs that were started at boot must be among the applications.
	Kernels      []string `hcl:"kernels,optional" json:"kernels,omitempty"`
	Initrds      []string `hcl:"initrds,optional" json:"initrds,omitempty"`
	Applications []string `hcl:"applications,optional" json:"applications,omitempty"`
	// CommandLines are the kernel's, as in /proc/cmdline, of which it must have one; Arguments must
	// all be in it.
	CommandLines []string `hcl:"command_lines,optional" json:"command_lines,omitempty"`
	Arguments    []string `hcl:"arguments,optional" json:"arguments,omitempty"`
	// Authorities are the SHA-256 digests of the certificates that may vouch for what is started.
	Authorities []string `hcl:"authorities,optional" json:"authorities,omitempty"`
	// Lockdown of the kernel at least: "integrity" or "confidentiality".
	Lockdown string `hcl:"lockdown,optional" json:"lockdown,omitempty"`
	// FirmwareMin is the lowest firmware version of the TPM, 16 hexadecimal digits as in the
	// selector tpm:firmware.
	FirmwareMin string `hcl:"firmware_min,optional" json:"firmware_min,omitempty"`
	// Manufacturers of the TPM, as in the selector tpm:manufacturer.
	Manufacturers []string `hcl:"manufacturers,optional" json:"manufacturers,omitempty"`
	// IMAAllow are files with lines as sha256sum prints them (`assay tpm learn --ima`): what the
	// node may execute. A list is called by its file's name without the ending.
	IMAAllow []string `hcl:"ima_allow,optional" json:"ima_allow,omitempty"`
	// NoViolations: no file may be written while it is measured.
	NoViolations bool `hcl:"no_violations,optional" json:"no_violations,omitempty"`
}

// KeyError is a key of a node group that can not be used.
type KeyError struct {
	Group, Key string
	Err        error
}

func (e *KeyError) Error() string { return fmt.Sprintf("node_group %q: %s: %v", e.Group, e.Key, e.Err) }

func (e *KeyError) Unwrap() error { return e.Err }

// Group understands the block; read returns the files that it names. Errors are *KeyError.
func (c *GroupConfig) Group(read func(path string) ([]byte, error)) (*Group, error) {
	g := &Group{
		Name: c.Name, RequirePCRs: c.RequirePCRs, SecureBoot: c.SecureBoot, CommandLines: c.CommandLines, Arguments: c.Arguments,
		Lockdown: c.Lockdown, Manufacturers: c.Manufacturers, NoViolations: c.NoViolations,
	}
	wrong := func(key, format string, args ...any) (*Group, error) {
		return nil, &KeyError{c.Name, key, fmt.Errorf(format, args...)}
	}
	for _, n := range c.RequirePCRs {
		if n < 0 || n > 15 {
			return wrong("require_pcrs", "%d is not a PCR from 0 to 15; later ones can be reset by software", n)
		}
	}
	switch {
	case len(c.RequirePCRs) > 0 && c.Golden == "":
		return wrong("require_pcrs", "set golden, too: a file that `assay tpm learn` writes")
	case !slices.Contains([]string{"", "integrity", "confidentiality"}, c.Lockdown):
		return wrong("lockdown", "%q is unknown; write \"integrity\" or \"confidentiality\"", c.Lockdown)
	}
	for _, list := range []struct {
		key   string
		texts []string
		to    *[]selectors.Digest
	}{
		{"dbx", c.DBX, &g.DBX}, {"kernels", c.Kernels, &g.Kernels}, {"initrds", c.Initrds, &g.Initrds},
		{"applications", c.Applications, &g.Applications}, {"authorities", c.Authorities, &g.Authorities},
	} {
		for _, text := range list.texts {
			b, err := hex.DecodeString(text)
			if err != nil || len(b) != len(selectors.Digest{}) {
				return wrong(list.key, "%q is not a SHA-256 in 64 hexadecimal digits", text)
			}
			*list.to = append(*list.to, selectors.Digest(b))
		}
	}
	if c.FirmwareMin != "" {
		n, err := strconv.ParseUint(c.FirmwareMin, 16, 64)
		if err != nil || len(c.FirmwareMin) != 16 {
			return wrong("firmware_min", "%q: write 16 hexadecimal digits, as in the selector tpm:firmware", c.FirmwareMin)
		}
		g.FirmwareMin = n
	}
	if key, err := c.readFiles(g, read); err != nil {
		return nil, &KeyError{c.Name, key, err}
	}
	return g, nil
}

// readFiles reads golden machines and allow-lists; an error is about the key.
func (c *GroupConfig) readFiles(g *Group, read func(path string) ([]byte, error)) (key string, err error) {
	golden := func(path string) (*Golden, error) {
		data, err := read(path)
		if err != nil {
			return nil, err
		}
		m, err := ParseGolden(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return m, nil
	}
	if c.Golden != "" {
		if g.Golden, err = golden(c.Golden); err != nil {
			return "golden", err
		}
	}
	for _, path := range c.DBXOf {
		m, err := golden(path)
		if err != nil {
			return "dbx_of", err
		}
		boot, err := m.boot()
		if err != nil || boot == nil || !boot.DBX.Known() {
			return "dbx_of", errors.Join(fmt.Errorf("%s: its boot log does not tell its dbx; learn it on a machine with UEFI Secure Boot", path), err)
		}
		g.DBXOf = append(g.DBXOf, boot.DBX)
	}
	for _, path := range c.IMAAllow {
		data, err := read(path)
		if err != nil {
			return "ima_allow", err
		}
		files, err := ima.ParseAllowList(bytes.NewReader(data))
		if err != nil {
			return "ima_allow", fmt.Errorf("%s: %w", path, err)
		}
		g.IMA = append(g.IMA, List{Name: strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), Files: files})
	}
	return "", nil
}
