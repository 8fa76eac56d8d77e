// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"

	"github.com/assay-id/assay/tpm/policy"
)

// readGroups reads the node groups, with the files that they name.
func (p *prepared) readGroups() error {
	p.groups = map[string]*policy.Group{}
	for _, c := range p.NodeGroups {
		if c.Name == "" || p.groups[c.Name] != nil {
			return fmt.Errorf("node_group %q: a group needs a name of its own", c.Name)
		}
		g, err := c.Group(os.ReadFile)
		if err != nil {
			return err
		}
		p.groups[c.Name] = g
	}
	if len(p.groups) > 0 && p.TPM == nil {
		return fmt.Errorf("node_group %q: only nodes with a TPM can be judged; add a block tpm { … }", p.NodeGroups[0].Name)
	}
	return nil
}
