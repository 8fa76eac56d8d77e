// SPDX-License-Identifier: Apache-2.0

// Package svids holds the X.509-SVIDs of this node's workloads: it knows the entries and the
// bundle that the server pushed, makes keys, has them signed when a workload first asks,
// renews them at half life for as long as a workload listens, and tells listeners at once
// when anything that they would see has changed.
//
// An SVID is asked for with the facts of the process that wants it, because the server signs
// on evidence. A renewal uses the facts of a process that listens at that moment.
package svids

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// SVID is one X.509-SVID with its key. It does not change.
type SVID struct {
	EntryID       string
	EntryRevision int64
	ID            spiffeid.ID
	// Chain is the certificates, leaf first, concatenated DER; Key is PKCS#8 DER.
	Chain, Key []byte
	Hint       string
	// Serial is the leaf's serial number in decimal.
	Serial              string
	NotBefore, NotAfter time.Time
}

// Signer has keys signed by the server (agent/upstream).
type Signer interface {
	// SignX509SVID returns the chain, leaf first. An error with a method
	// Refused() bool that says true is a verdict of the server; any other is a fault.
	SignX509SVID(ctx context.Context, entry *selectors.Entry, csr []byte, facts *selectors.Facts) ([]*x509.Certificate, error)
}

// refused reports whether a Signer's error is a verdict of the server and not a fault.
func refused(err error) bool {
	var r interface{ Refused() bool }
	return errors.As(err, &r) && r.Refused()
}

// Manager is the node's SVIDs. Make one with New. It is safe for concurrent use.
type Manager struct {
	signer Signer
	log    *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	index    selectors.Index
	bundle   *spiffebundle.Bundle
	cache    map[string]*slot // by entry id
	subs     map[*Subscription]struct{}
	revision int64
	synced   time.Time
	ready    chan struct{}
	isReady  bool
}

// New returns a Manager that knows nothing yet; feed it through Entries and Bundle.
func New(signer Signer, log *slog.Logger, now func() time.Time) *Manager {
	return &Manager{signer: signer, log: log, now: now, cache: map[string]*slot{},
		subs: map[*Subscription]struct{}{}, ready: make(chan struct{})}
}

// Ready is closed once entries and a bundle have arrived.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Entries takes what the server pushed. full replaces everything known; otherwise changed
// entries are added or replaced and removed ids are forgotten.
func (m *Manager) Entries(full bool, changed []*selectors.Entry, removed []string, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if full {
		keep := make(map[string]bool, len(changed))
		for _, e := range changed {
			keep[e.ID] = true
		}
		for e := range m.index.All {
			if !keep[e.ID] {
				removed = append(removed, e.ID)
			}
		}
	}
	var touched []selectors.Set
	for _, id := range removed {
		if old := m.index.Get(id); old != nil {
			touched = append(touched, old.SelectorSet())
			m.index.Delete(id)
			m.drop(id)
		}
	}
	for _, e := range changed {
		old := m.index.Get(e.ID)
		if old != nil && old.Revision == e.Revision && old.CreatedAt.Equal(e.CreatedAt) {
			continue
		}
		if old != nil {
			touched = append(touched, old.SelectorSet())
		}
		touched = append(touched, e.SelectorSet())
		m.index.Put(e)
	}
	m.revision, m.synced = revision, m.now()
	for s := range m.subs {
		for _, t := range touched {
			if t.SubsetOf(s.set) {
				s.notify()
				break
			}
		}
	}
	m.becomeReady()
}

// Bundle takes the trust domain's bundle as the server pushed it.
func (m *Manager) Bundle(b *spiffebundle.Bundle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bundle != nil && m.bundle.Equal(b) {
		return
	}
	m.bundle = b
	for s := range m.subs {
		s.notify()
	}
	m.becomeReady()
}

func (m *Manager) becomeReady() {
	if !m.isReady && m.bundle != nil && !m.synced.IsZero() {
		m.isReady = true
		close(m.ready)
	}
}

// TrustBundle returns the trust domain's bundle, or nil before Ready.
func (m *Manager) TrustBundle() *spiffebundle.Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bundle
}

// Match returns the entries that the set satisfies, oldest first.
func (m *Manager) Match(set selectors.Set) []*selectors.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	all := m.index.Match(set)
	live := all[:0]
	for _, e := range all {
		if !e.Expired(now) {
			live = append(live, e)
		}
	}
	return live
}

// Nearest returns up to n entries that the set does not satisfy, nearest first.
func (m *Manager) Nearest(set selectors.Set, n int) []selectors.Near {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index.Nearest(set, n)
}

// State is the Manager's size and age, for status.
type State struct {
	Entries, SVIDs, Subscriptions int
	Revision                      int64
	Synced                        time.Time
}

// State returns the Manager's size and age.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, s := range m.cache {
		if s.svid != nil {
			n++
		}
	}
	return State{m.index.Len(), n, len(m.subs), m.revision, m.synced}
}

// makeKey returns a new P-256 key as PKCS#8 and a CSR for the entry signed by it.
func makeKey(id spiffeid.ID) (pkcs8, csr []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make SVID key: %w", err)
	}
	if pkcs8, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, nil, fmt.Errorf("encode SVID key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
		URIs:    []*url.URL{id.URL()},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make CSR: %w", err)
	}
	return pkcs8, csr, nil
}
