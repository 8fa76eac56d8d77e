// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/assay-id/assay/selectors"
)

// Caller is the process for which SVIDs are asked.
type Caller interface {
	Facts() *selectors.Facts
	Selectors() selectors.Set
}

// slotKey says what the Manager keeps apart.
type slotKey struct {
	kind     Kind
	entry    string
	audience string // of JWT
	// Of JWT, and of what is for one process: that process, whose next image is another one.
	process selectors.ProcessKey
}

// shared is the key without the process.
func (k slotKey) shared() slotKey {
	k.process = selectors.ProcessKey{}
	return k
}

// slot is what the Manager holds for one key. All fields belong to Manager.mu.
type slot struct {
	svid    *SVID         // nil before the first issue
	set     selectors.Set // with a process: what it was when it was issued
	stale   bool          // to be replaced, whatever its age
	pending chan struct{} // closed when the issue under way ends; nil when none is
	used    time.Time     // when somebody last asked or listened
	due     time.Time     // when its listeners are to ask again; zero: never
	tries   int           // how often in a row the server could not be asked
	retry   time.Time     // it is not asked before, as long as the SVID is good
	token   *list.Element // of JWT: in Manager.tokens
}

// maxTokens is how many JWT-SVIDs are kept, as in SPIRE's agent.
const maxTokens = 1000

// X509 returns an X.509-SVID for each of the entries, in their order, asking the
// server for those that are missing, out of date, or past their half life.
//
// When the server can not be reached, an SVID that is still valid and is for the same SPIFFE
// ID is returned rather than none. An entry that the server refuses is left out; its reason
// is returned beside the others.
func (m *Manager) X509(ctx context.Context, c Caller, entries []*selectors.Entry) ([]*SVID, error) {
	return m.all(ctx, c, entries, X509, nil)
}

// WIT does the same for WIT-SVIDs.
func (m *Manager) WIT(ctx context.Context, c Caller, entries []*selectors.Entry) ([]*SVID, error) {
	return m.all(ctx, c, entries, WIT, nil)
}

// JWT does the same for JWT-SVIDs for an audience. A token is kept for the process that it was signed for, as long
// as that is what it was; tokens with a jti are not kept.
func (m *Manager) JWT(ctx context.Context, c Caller, entries []*selectors.Entry, audience []string) ([]*SVID, error) {
	return m.all(ctx, c, entries, JWT, audience)
}

func (m *Manager) all(ctx context.Context, c Caller, entries []*selectors.Entry, kind Kind, audience []string) ([]*SVID, error) {
	var out []*SVID
	var errs []error
	for _, e := range entries {
		s, err := m.one(ctx, c, e, kind, audience)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %s (%s): %w", e.ID, e.SPIFFEID, err))
			continue
		}
		out = append(out, s)
	}
	return out, errors.Join(errs...)
}

func (m *Manager) one(ctx context.Context, c Caller, e *selectors.Entry, kind Kind, audience []string) (*SVID, error) {
	r := request{kind: kind, entry: e, caller: c, audience: audience}
	if a := e.Attributes; kind == JWT && a != nil && a.JWTSVIDIncludeJTI {
		return m.sign(ctx, &r)
	}
	shared := slotKey{kind: kind, entry: e.ID, audience: strings.Join(audience, "\x00")}
	for {
		m.mu.Lock()
		key, set := shared, selectors.Set(nil)
		if m.alone(e, kind) {
			key.process, set = c.Facts().Process, c.Selectors()
		}
		s, now := m.slot(key), m.now()
		s.used = now
		r.renews = s.is(set, audience) && m.good(s, e)
		if r.renews && (now.Before(half(s.svid)) || s.pending != nil || now.Before(s.retry) || m.busy(key, s)) {
			last := s.svid
			m.mu.Unlock()
			return last, nil
		}
		if wait := s.pending; wait != nil {
			m.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		s.pending = make(chan struct{})
		if r.renews {
			m.renewing++
		}
		m.mu.Unlock()
		return m.issue(ctx, &r, key, s, set)
	}
}

// alone reports whether each process has an SVID of its own: a JWT-SVID always is, the others where the entry or the
// server's policy says so. With mu held.
func (m *Manager) alone(e *selectors.Entry, kind Kind) bool {
	return kind == JWT || e.Options.PerProcess || m.apart[slotKey{kind: kind, entry: e.ID}]
}

// slot returns the slot of the key, which is now the one that was used last. With mu held.
func (m *Manager) slot(key slotKey) *slot {
	s := m.cache[key]
	if s == nil {
		s = &slot{}
		m.cache[key] = s
		m.arm(m.now().Add(tick))
	}
	if key.kind != JWT {
		return s
	}
	if s.token != nil {
		m.tokens.MoveToFront(s.token)
		return s
	}
	s.token = m.tokens.PushFront(key)
	if m.tokens.Len() > maxTokens {
		last := m.tokens.Back().Value.(slotKey)
		m.drop(last, m.cache[last])
	}
	return s
}

// is: an SVID for just this audience, of a process that is still what it was.
func (s *slot) is(set selectors.Set, audience []string) bool {
	return s.svid != nil && slices.Equal(s.set, set) && slices.Equal(s.svid.Audience, audience)
}

// good: for this revision of the entry, and nothing speaks against its use while it is valid.
func (m *Manager) good(s *slot, e *selectors.Entry) bool {
	v := s.svid
	return !s.stale && v.EntryRevision == e.Revision && v.ID == e.SPIFFEID && m.now().Before(v.NotAfter)
}

func half(s *SVID) time.Time { return s.NotBefore.Add(s.NotAfter.Sub(s.NotBefore) / 2) }

// issue has an SVID signed and puts it into the slot, whose pending the caller set.
func (m *Manager) issue(ctx context.Context, r *request, key slotKey, s *slot, set selectors.Set) (*SVID, error) {
	svid, err := m.sign(ctx, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.renews {
		m.renewing--
	}
	close(s.pending)
	s.pending = nil
	if err != nil {
		return m.failed(ctx, r.entry, key, s, s.is(set, r.audience), err)
	}
	m.failing = Failing{}
	if alone := svid.perProcess || r.entry.Options.PerProcess; key.kind != JWT && alone == (key == key.shared()) {
		m.drop(key, s)
		if key, set = key.shared(), nil; alone {
			m.apart[key] = true // who waits for the slot looks for his own
			key.process, set = r.caller.Facts().Process, r.caller.Selectors()
		} else {
			delete(m.apart, key)
		}
		s = m.slot(key)
	}
	s.svid, s.set, s.stale, s.tries, s.used = svid, set, false, 0, m.now()
	taints := m.taints(svid) // told of it while the server signed, or the server does not know it yet
	switch {
	case key.kind == JWT && taints:
		m.drop(key, s)
	case key.kind == JWT:
	case taints:
		m.wake(r.entry, key.process)
		m.schedule(s, m.now().Add(retryAfter))
	default:
		m.wake(r.entry, key.process)
		m.schedule(s, half(svid).Add(rand.N(svid.NotAfter.Sub(svid.NotBefore)/20+1)))
	}
	return svid, nil
}

// forget drops what was issued for the entries. With mu held.
func (m *Manager) forget(entries []string) {
	if len(entries) == 0 {
		return
	}
	gone := make(map[string]bool, len(entries))
	for _, id := range entries {
		gone[id] = true
		delete(m.apart, slotKey{kind: X509, entry: id})
		delete(m.apart, slotKey{kind: WIT, entry: id})
	}
	for key, s := range m.cache {
		if gone[key.entry] {
			m.drop(key, s)
		}
	}
}

// drop forgets one SVID. With mu held.
func (m *Manager) drop(key slotKey, s *slot) {
	if s.token != nil {
		m.tokens.Remove(s.token)
		s.token = nil
	}
	if m.cache[key] == s {
		delete(m.cache, key)
	}
}
