// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/policy"
)

// NodeGroupConfig is a block `node_group "name"`: what is demanded of the nodes with a TPM that the
// inventory puts into the group. Nodes in none are of the group "default", if there is one.
type NodeGroupConfig struct {
	Name string `hcl:"name,label"`
	// Golden is a file that `assay tpm learn` wrote on a machine that is as all should be.
	Golden string `hcl:"golden,optional"`
	// RequirePCRs are the PCRs that must have the values of Golden (default 0, 2, 4, 7).
	RequirePCRs []int `hcl:"require_pcrs,optional"`
	// SecureBoot must be on.
	SecureBoot bool `hcl:"secure_boot,optional"`
	// DBX are SHA-256 hashes that the node's list of forbidden boot programs must hold.
	DBX []string `hcl:"dbx,optional"`
	// Kernels, Initrds and Applications are SHA-256 digests. Kernel and initrd must be one of them; all
	// programs that were started at boot must be among the applications.
	Kernels      []string `hcl:"kernels,optional"`
	Initrds      []string `hcl:"initrds,optional"`
	Applications []string `hcl:"applications,optional"`
	// CommandLines are the kernel's, as in /proc/cmdline, of which it must have one; Arguments must
	// all be in it.
	CommandLines []string `hcl:"command_lines,optional"`
	Arguments    []string `hcl:"arguments,optional"`
	// Authorities are the SHA-256 digests of the certificates that may vouch for what is started.
	Authorities []string `hcl:"authorities,optional"`
	// Lockdown of the kernel at least: "integrity" or "confidentiality".
	Lockdown string `hcl:"lockdown,optional"`
	// FirmwareMin is the lowest firmware version of the TPM, 16 hexadecimal digits as in the
	// selector tpm:firmware.
	FirmwareMin string `hcl:"firmware_min,optional"`
	// Manufacturers of the TPM, as in the selector tpm:manufacturer.
	Manufacturers []string `hcl:"manufacturers,optional"`
	// IMAAllow are files with lines as sha256sum prints them (`assay tpm learn --ima`): what the
	// node may execute. A list is called by its file's name without the ending.
	IMAAllow []string `hcl:"ima_allow,optional"`
	// NoViolations: no file may be written while it is measured.
	NoViolations bool `hcl:"no_violations,optional"`
}

// readGroups reads the node groups, with the files that they name.
func (p *prepared) readGroups() error {
	p.groups = map[string]*policy.Group{}
	for _, c := range p.NodeGroups {
		if c.Name == "" || p.groups[c.Name] != nil {
			return fmt.Errorf("node_group %q: a group needs a name of its own", c.Name)
		}
		g, err := c.group()
		if err != nil {
			return fmt.Errorf("node_group %q: %w", c.Name, err)
		}
		p.groups[c.Name] = g
	}
	if len(p.groups) > 0 && p.TPM == nil {
		return fmt.Errorf("node_group %q: only nodes with a TPM can be judged; add a block tpm { … }", p.NodeGroups[0].Name)
	}
	return nil
}

func (c *NodeGroupConfig) group() (*policy.Group, error) {
	g := &policy.Group{
		Name: c.Name, RequirePCRs: c.RequirePCRs, SecureBoot: c.SecureBoot, CommandLines: c.CommandLines, Arguments: c.Arguments,
		Lockdown: c.Lockdown, Manufacturers: c.Manufacturers, NoViolations: c.NoViolations,
	}
	for _, n := range c.RequirePCRs {
		if n < 0 || n > 15 {
			return nil, fmt.Errorf("require_pcrs: %d is not a PCR from 0 to 15; later ones can be reset by software", n)
		}
	}
	switch {
	case len(c.RequirePCRs) > 0 && c.Golden == "":
		return nil, errors.New("require_pcrs needs golden, a file that `assay tpm learn` writes")
	case !slices.Contains([]string{"", "integrity", "confidentiality"}, c.Lockdown):
		return nil, fmt.Errorf("lockdown %q: write \"integrity\" or \"confidentiality\"", c.Lockdown)
	}
	for _, list := range []struct {
		name  string
		texts []string
		to    *[]selectors.Digest
	}{
		{"dbx", c.DBX, &g.DBX}, {"kernels", c.Kernels, &g.Kernels}, {"initrds", c.Initrds, &g.Initrds},
		{"applications", c.Applications, &g.Applications}, {"authorities", c.Authorities, &g.Authorities},
	} {
		for _, text := range list.texts {
			b, err := hex.DecodeString(text)
			if err != nil || len(b) != len(selectors.Digest{}) {
				return nil, fmt.Errorf("%s: %q is not a SHA-256 in 64 hexadecimal digits", list.name, text)
			}
			*list.to = append(*list.to, selectors.Digest(b))
		}
	}
	if c.FirmwareMin != "" {
		n, err := strconv.ParseUint(c.FirmwareMin, 16, 64)
		if err != nil || len(c.FirmwareMin) != 16 {
			return nil, fmt.Errorf("firmware_min %q: write 16 hexadecimal digits, as in the selector tpm:firmware", c.FirmwareMin)
		}
		g.FirmwareMin = n
	}
	return g, c.readFiles(g)
}

// readFiles reads the golden machine and the allow-lists.
func (c *NodeGroupConfig) readFiles(g *policy.Group) error {
	if c.Golden != "" {
		data, err := os.ReadFile(c.Golden)
		if err != nil {
			return fmt.Errorf("golden: %w", err)
		}
		if g.Golden, err = policy.ParseGolden(data); err != nil {
			return fmt.Errorf("golden %s: %w", c.Golden, err)
		}
	}
	for _, path := range c.IMAAllow {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("ima_allow: %w", err)
		}
		files, err := ima.ParseAllowList(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("ima_allow %s: %w", path, err)
		}
		name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		g.IMA = append(g.IMA, policy.List{Name: name, Files: files})
	}
	return nil
}
