// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
)

// Vouched returns the parts of an agent's history of deliveries that its TPM vouched for, oldest
// first: the longest before its last attestation, as far as it is known, and the last ones since.
func (c *Continuous) Vouched(id spiffeid.ID) []nodes.Anchor {
	var out []nodes.Anchor
	n := c.Nodes.Get(id)
	if n != nil && n.TPM != nil && n.TPM.Former != nil {
		out = append(out, *n.TPM.Former)
	}
	recent := c.anchors(id)
	if len(recent) == 0 && n != nil && n.TPM != nil && n.TPM.History.Count > 0 {
		recent = []nodes.Anchor{anchorOf(n.TPM)}
	}
	return append(out, recent...)
}

// vouched returns the longest part so far, or nil; it stays known when the agent attests anew.
func (c *Continuous) vouched(id spiffeid.ID) *nodes.Anchor {
	if c == nil {
		return nil
	}
	var longest *nodes.Anchor
	for _, a := range c.Vouched(id) {
		if longest == nil || a.History.Count >= longest.History.Count {
			longest = &a
		}
	}
	return longest
}

func anchorOf(s *nodes.TPMState) nodes.Anchor {
	return nodes.Anchor{At: s.QuotedAt, Clock: s.Quoted.Clock, History: s.History}
}

// compareFormer says it when an agent comes back with a shorter history. It may be that its
// data_dir was removed for a good reason, so it is for people to judge.
func (c *Continuous) compareFormer(id spiffeid.ID, history tpm.History, former *nodes.Anchor) {
	if former != nil && history.Count < former.History.Count {
		c.Logger.Warn("the agent's history of deliveries is shorter than its TPM vouched for: its data_dir was removed or rewritten",
			"agent", id, "records", history.Count, "were", former.History.Count, "at", former.At)
	}
}
