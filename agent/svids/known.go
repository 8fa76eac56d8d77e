// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"cmp"
	"slices"
	"time"

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

// Counts returns how many X.509-SVIDs and JWT-SVIDs there are, and when the server last told entries.
func (m *Manager) Counts() (x509, jwt int, synced time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.cache {
		switch {
		case s.svid == nil:
		case key.kind == X509:
			x509++
		case key.kind == JWT:
			jwt++
		}
	}
	return x509, jwt, m.synced
}
