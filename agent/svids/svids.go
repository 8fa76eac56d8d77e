// SPDX-License-Identifier: Apache-2.0

// Package svids holds the identities of this node's workloads: it knows the entries and the bundles that
// the server pushed, makes keys, has SVIDs signed when a workload first asks, renews them at half life for
// as long as a workload listens, replaces at once those that a tainted authority signed, and tells
// listeners when anything that they would see has changed.
//
// An SVID is asked for with the facts of the process that wants it, because the server signs
// on evidence. A renewal uses the facts of a process that listens at that moment.
//
//	X.509, WIT   one for each entry, shared by its workloads, renewed for those who listen
//	JWT          one for each entry, audience and process; of the last maxTokens that were asked for
package svids

import (
	"cmp"
	"container/list"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Kind is a profile of SVIDs.
type Kind uint8

// The kinds.
const (
	X509 Kind = iota
	JWT
	WIT
)

func (k Kind) String() string { return [...]string{"x509", "jwt", "wit"}[k] }

// SVID is one identity document. It does not change.
type SVID struct {
	Kind          Kind
	EntryID       string
	EntryRevision int64
	ID            spiffeid.ID
	// Chain of X.509: the certificates, leaf first, concatenated DER.
	Chain []byte
	// Token of JWT and WIT: the compact JWS.
	Token string
	// Key is PKCS#8 DER (X.509) or a JWK (WIT).
	Key []byte
	// Serial is the leaf's serial number in decimal (X.509), or the token's SHA-256 in hex.
	Serial string
	// Audience of JWT.
	Audience            []string
	NotBefore, NotAfter time.Time

	keyID      string // of the authority that signed the token
	perProcess bool   // the server's policy said yes to one process
}

// Manager is the node's SVIDs. Make one with New. It is safe for concurrent use.
type Manager struct {
	signer Signer
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	index   selectors.Index
	own     *trust.Bundle // nil before the first
	foreign map[spiffeid.TrustDomain]*trust.Bundle
	version uint64        // of the bundles
	settled chan struct{} // closed when behind is 0
	behind  int           // listeners that have not shown that they have this version
	cache   map[slotKey]*slot
	// apart are the slots, without a process, that the server's policy had us keep by process.
	apart    map[slotKey]bool
	tokens   list.List // the JWT slots' keys, least recently used last
	subs     map[*Subscription]struct{}
	revision int64
	synced   time.Time
	ready    chan struct{}
	isReady  bool
}

// New returns a Manager that knows nothing yet; feed it through Entries and Trust.
func New(signer Signer, log *slog.Logger, now func() time.Time) *Manager {
	m := &Manager{signer: signer, log: log, now: now, cache: map[slotKey]*slot{}, apart: map[slotKey]bool{}, foreign: map[spiffeid.TrustDomain]*trust.Bundle{},
		subs: map[*Subscription]struct{}{}, ready: make(chan struct{}), settled: make(chan struct{})}
	close(m.settled)
	return m
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
		}
	}
	m.forget(removed)
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

func (m *Manager) becomeReady() {
	if !m.isReady && m.own != nil && !m.synced.IsZero() {
		m.isReady = true
		close(m.ready)
	}
}

// Match returns the entries that the set satisfies, ordered by id: the first one is the default identity.
func (m *Manager) Match(set selectors.Set) []*selectors.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	return slices.DeleteFunc(m.index.Match(set), func(e *selectors.Entry) bool { return e.Expired(now) })
}

// Named returns the entries for the SPIFFE ID, ordered by id.
func (m *Manager) Named(id spiffeid.ID) (out []*selectors.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := range m.index.All {
		if e.SPIFFEID == id {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *selectors.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Hints returns the hint of each entry, by id. Where several have the same one, the oldest keeps it and
// the others have none: a hint names one identity (SPIFFE Workload API, section 5.2.1).
func Hints(entries []*selectors.Entry) map[string]string {
	holder := map[string]*selectors.Entry{}
	for _, e := range entries {
		if h := holder[e.Hint]; e.Hint != "" && (h == nil || cmp.Or(e.CreatedAt.Compare(h.CreatedAt), cmp.Compare(e.ID, h.ID)) < 0) {
			holder[e.Hint] = e
		}
	}
	out := make(map[string]string, len(holder))
	for hint, e := range holder {
		out[e.ID] = hint
	}
	return out
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
