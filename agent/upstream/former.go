// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/agent/upstream/wire"
)

// Former returns which agent the last run was. It is an error if the server took that identity back (node deleted, suspended,
// banned), if there was none, or if the node proved itself in another way than it would now. Call it before Run.
func (c *Client) Former() (spiffeid.ID, error) {
	s, _, err := c.read()
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the node's former identity: %w", err)
	}
	if s.Attestor != c.cfg.Attestor.Type() {
		return spiffeid.ID{}, fmt.Errorf("the node's former identity was by attestor %q", s.Attestor)
	}
	chain, err := wire.Chain(s.Chain)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the node's former identity: %w", err)
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the node's former identity: %w", err)
	}
	return id, nil
}
