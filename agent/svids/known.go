// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"cmp"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/trust"
)

// Bundle returns a trust domain's bundle, nil if the agent has none. Those of other trust domains are there while an
// entry of this node federates with them.
func (m *Manager) Bundle(td spiffeid.TrustDomain) *trust.Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.own != nil && m.own.TrustDomain() == td {
		return m.own
	}
	return m.foreign[td]
}

// AllBundles returns our trust domain's bundle, and after it all others that the agent has, by name. Call it after Ready.
func (m *Manager) AllBundles() []*trust.Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*trust.Bundle, 0, 1+len(m.foreign))
	for _, b := range m.foreign {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b *trust.Bundle) int { return cmp.Compare(a.TrustDomain().Name(), b.TrustDomain().Name()) })
	return slices.Insert(out, 0, m.own)
}

// Count returns how many SVIDs of a kind there are.
func (m *Manager) Count(kind Kind) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.cache {
		if key.kind == kind && s.svid != nil {
			n++
		}
	}
	return n
}
