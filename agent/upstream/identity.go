// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// GetX509SVID returns the node's own SVID (go-spiffe's x509svid.Source). An error: the node is not attested.
func (c *Client) GetX509SVID() (*x509svid.SVID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node == nil {
		return nil, errors.New("this node has no identity yet: the server has not admitted it")
	}
	return c.node.svid, nil
}

// WantsEvidence reports whether the server signs on evidence. A server of SPIRE's takes the agent's word.
func (c *Client) WantsEvidence() bool { return !c.spire.Load() }
