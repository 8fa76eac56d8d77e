// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/federation"
)

// foreignBundles are the bundles of other trust domains that an agent has by its feed: those that
// its entries federate with and this server knows.
type foreignBundles struct {
	s     *Server
	agent spiffeid.ID
	sent  map[spiffeid.TrustDomain]*federation.Bundle
}

// update adds to a message what the agent has not or no longer to have, and returns a channel that
// is closed when that may have changed.
func (f *foreignBundles) update(msg *nodev1.WatchResponse) <-chan struct{} {
	changed := f.s.cfg.Federation.Changed() // before reading
	wanted := f.wanted()
	for td, b := range wanted {
		if old := f.sent[td]; old == b || old != nil && old.Sequence == b.Sequence && old.RefreshHint == b.RefreshHint && old.Equal(b) {
			continue
		}
		msg.Federated = append(msg.Federated, wire.FederatedBundle(b, nil))
	}
	for td := range f.sent {
		if wanted[td] == nil {
			msg.FederatedRemoved = append(msg.FederatedRemoved, td.Name())
		}
	}
	f.sent = wanted
	slices.SortFunc(msg.Federated, func(a, b *types.Bundle) int { return cmp.Compare(a.TrustDomain, b.TrustDomain) })
	slices.Sort(msg.FederatedRemoved)
	return changed
}

func (f *foreignBundles) wanted() map[spiffeid.TrustDomain]*federation.Bundle {
	wanted := map[spiffeid.TrustDomain]*federation.Bundle{}
	if f.s.cfg.Federation.CountBundles() == 0 {
		return wanted
	}
	for _, e := range f.s.cfg.Entries.Authorized(f.agent, f.s.nodeSelectors(f.agent)) {
		for _, name := range e.FederatesWith {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				continue // entries hold names that were read by this very function
			}
			if b := f.s.cfg.Federation.Bundle(td); b != nil {
				wanted[td] = b
			}
		}
	}
	return wanted
}
