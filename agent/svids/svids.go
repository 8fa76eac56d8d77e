// SPDX-License-Identifier: Apache-2.0

// Package svids holds the identities of this node's workloads: it knows the entries and the bundles that
// the server pushed, has SVIDs signed when a workload first asks (or, where the entry wants it, when its program is
// executed), renews them at half life for as long as a workload listens, replaces at once those that a tainted
// authority signed, forgets those that nobody needs, and tells listeners when anything that they would see has changed.
//
// An SVID is asked for with the facts of the process that wants it, because the server signs
// on evidence. A renewal uses the facts of a process that listens at that moment.
//
//	X.509, WIT   one for each entry, shared by its workloads, renewed for those who listen; where the entry or the
//	             server's policy says so, one for each process and image, and gone with it
//	JWT          one for each entry, audience and process; of the last maxTokens that were asked for
//
// Times of certificates are of the wall clock, which jumps; waiting is of the monotonic clock, which stops while the machine
// sleeps. So one timer wakes the Manager now and then, and ClockSet at once, to compare (renew.go).
package svids

import (
	"cmp"
	"container/list"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/keys"
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
	perProcess bool   // made for one process: the entry or the server's policy wants that
}

// OneProcess reports whether an X.509-SVID was made for one process, and so for its key alone.
func (s *SVID) OneProcess() bool { return s.Kind == X509 && s.perProcess }

// Config is what a Manager needs.
type Config struct {
	Signer Signer
	// KeyType of X.509-SVIDs whose entries leave it to the agent; zero is P-256.
	KeyType selectors.KeyType
	// Alive reports whether the process lives and still runs the image. It may be nil: then SVIDs of one process are kept
	// for the grace after it has exited.
	Alive func(selectors.ProcessKey) bool
	// Connected reports whether the server is there. It may be nil: then failed tries tell.
	Connected func() bool
	Logger    *slog.Logger
	Now       func() time.Time
}

// Manager is the node's SVIDs. Make one with New. It is safe for concurrent use.
type Manager struct {
	signer  Signer
	keyType selectors.KeyType
	alive   func(selectors.ProcessKey) bool
	present func() bool
	log     *slog.Logger
	now     func() time.Time
	keys    keys.Pool

	mu       sync.Mutex
	index    selectors.Index
	programs map[string]int // that are expected, by how many entries
	own      *trust.Bundle  // nil before the first
	foreign  map[spiffeid.TrustDomain]*trust.Bundle
	version  uint64        // of the bundles
	settled  chan struct{} // closed when behind is 0
	behind   int           // listeners that have not shown that they have this version
	cache    map[slotKey]*slot
	apart    map[slotKey]bool // the slots, without a process, that the server's policy had us keep by process
	tokens   list.List        // the JWT slots' keys, least recently used last
	subs     map[*Subscription]struct{}
	timer    *time.Timer   // of look
	next     time.Time     // when it looks
	pause    time.Duration // between two looks at least: with very many SVIDs a look takes its time
	renewing int
	failing  Failing
	revision int64
	synced   time.Time
	ready    chan struct{}
	isReady  bool
}

// New returns a Manager that knows nothing yet; feed it through Entries and Trust.
func New(c Config) *Manager {
	m := &Manager{signer: c.Signer, keyType: cmp.Or(c.KeyType, selectors.KeyECP256), alive: c.Alive, present: c.Connected, log: c.Logger, now: c.Now,
		programs: map[string]int{}, cache: map[slotKey]*slot{}, apart: map[slotKey]bool{}, foreign: map[spiffeid.TrustDomain]*trust.Bundle{},
		subs: map[*Subscription]struct{}{}, ready: make(chan struct{}), settled: make(chan struct{})}
	close(m.settled)
	m.keys.Expect(m.keyType)
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
			m.count(old, -1)
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
			m.count(old, -1)
		}
		touched = append(touched, e.SelectorSet())
		m.index.Put(e)
		m.count(e, 1)
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

// State is the Manager's size and age, and whether it can do its work, for status.
type State struct {
	Entries, SVIDs, Subscriptions int
	Revision                      int64
	Synced                        time.Time
	Failing                       Failing
}

// State returns how the Manager is.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := State{Entries: m.index.Len(), Subscriptions: len(m.subs), Revision: m.revision, Synced: m.synced, Failing: m.failing}
	for _, s := range m.cache {
		if s.svid != nil {
			st.SVIDs++
		}
		if next := &st.Failing.Next; !st.Failing.Since.IsZero() && s.tries > 0 && (next.IsZero() || s.retry.Before(*next)) {
			*next = s.retry
		}
	}
	return st
}
