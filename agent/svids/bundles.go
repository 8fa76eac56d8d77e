// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"crypto/x509"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// taintSpread is the time over which SVIDs of a tainted authority are replaced: all agents hear of it at once.
const taintSpread = 400 * time.Millisecond

// Trust takes what the server pushed of bundles. The returned channel is closed when every listener
// that there is has seen it, or a later one.
func (m *Manager) Trust(c trust.Change) (settled <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := m.takeForeign(c)
	if c.Own != nil && (m.own == nil || !m.own.Equal(c.Own)) {
		m.own, changed = c.Own, true
		m.replaceTainted()
	}
	if changed {
		m.version++
		if m.behind == 0 && len(m.subs) > 0 {
			m.settled = make(chan struct{})
		}
		m.behind = len(m.subs)
		for s := range m.subs {
			s.notify()
		}
	}
	m.becomeReady()
	return m.settled
}

func (m *Manager) takeForeign(c trust.Change) (changed bool) {
	removed := c.Removed
	if c.Full {
		for td := range m.foreign {
			if !slices.ContainsFunc(c.Foreign, func(b *trust.Bundle) bool { return b.TrustDomain() == td }) {
				removed = append(removed, td)
			}
		}
	}
	for _, td := range removed {
		changed = changed || m.foreign[td] != nil
		delete(m.foreign, td)
	}
	for _, b := range c.Foreign {
		if old := m.foreign[b.TrustDomain()]; old == nil || !old.Equal(b) {
			m.foreign[b.TrustDomain()], changed = b, true
		}
	}
	return changed
}

// Bundles returns our trust domain's bundle, and after it those of the trust domains that the entries
// federate with, by name. Call it after Ready.
func (m *Manager) Bundles(entries []*selectors.Entry) []*trust.Bundle {
	var names []string
	for _, e := range entries {
		names = append(names, e.FederatesWith...)
	}
	slices.Sort(names)
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []*trust.Bundle{m.own}
	for _, name := range slices.Compact(names) {
		if td, err := spiffeid.TrustDomainFromString(name); err == nil && m.foreign[td] != nil {
			out = append(out, m.foreign[td])
		}
	}
	return out
}

// replaceTainted has what tainted authorities signed made anew: tokens when somebody asks for them, all
// others soon. With mu held.
func (m *Manager) replaceTainted() {
	for key, s := range m.cache {
		switch {
		case s.svid == nil || !m.taints(s.svid):
		case key.kind == JWT:
			m.drop(key, s)
		default:
			m.schedule(s, m.now().Add(rand.N(taintSpread)))
		}
	}
}

// taints reports whether an authority that is tainted now signed the SVID. With mu held.
func (m *Manager) taints(s *SVID) bool {
	if m.own == nil {
		return false
	}
	if s.Kind != X509 {
		return m.own.TaintsKey(s.keyID)
	}
	chain, err := x509.ParseCertificates(s.Chain)
	return err != nil || m.own.TaintsChain(chain)
}

// Subscription wakes a listener whenever the Manager may answer differently.
type Subscription struct {
	m       *Manager
	set     selectors.Set
	process selectors.ProcessKey
	wake    chan struct{}
	seen    uint64 // the bundles' version that it has shown
}

// Subscribe starts to listen on behalf of a process. Close it.
func (m *Manager) Subscribe(c Caller) *Subscription {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &Subscription{m: m, set: c.Selectors(), process: c.Facts().Process, wake: make(chan struct{}, 1), seen: m.version}
	m.subs[s] = struct{}{}
	return s
}

// of reports whether it listens on behalf of the process; zero is any.
func (s *Subscription) of(p selectors.ProcessKey) bool {
	return p == selectors.ProcessKey{} || p == s.process
}

// C receives after a change; several changes may be one receive.
func (s *Subscription) C() <-chan struct{} { return s.wake }

// Version names the bundles of this moment, for Has.
func (s *Subscription) Version() uint64 {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.m.version
}

// Has says that the workload was given the bundles of the version.
func (s *Subscription) Has(version uint64) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if version == s.m.version && s.seen != version {
		s.seen = version
		s.m.oneLessBehind()
	}
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.subs, s)
	if s.seen != s.m.version {
		s.m.oneLessBehind()
	}
}

func (m *Manager) oneLessBehind() {
	if m.behind--; m.behind == 0 {
		close(m.settled)
	}
}

func (s *Subscription) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
