// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"cmp"
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
	// Of JWT, and of what the server signs for one process: that process, whose next image is another one.
	process selectors.ProcessKey
}

// slot is what the Manager holds for one key. All fields belong to Manager.mu.
type slot struct {
	svid    *SVID         // nil before the first issue
	set     selectors.Set // with a process: what it was when it was issued
	tainted bool          // to be replaced, whatever its age
	pending chan struct{} // closed when the issue under way ends; nil when none is
	renew   *time.Timer
	used    *list.Element // of JWT: in Manager.tokens
}

const (
	// retryAfter is how long a workload's last good SVID is served before a failed renewal is tried again.
	retryAfter = 2 * time.Second
	// maxTokens is how many JWT-SVIDs are kept, as in SPIRE's agent.
	maxTokens = 1000
)

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
	key := slotKey{kind: kind, entry: e.ID}
	var set selectors.Set
	if kind == JWT {
		if a := e.Attributes; a != nil && a.JWTSVIDIncludeJTI {
			return m.sign(ctx, c, e, kind, audience)
		}
		key.audience, key.process, set = strings.Join(audience, "\x00"), c.Facts().Process, c.Selectors()
	}
	shared := key
	for {
		m.mu.Lock()
		if kind != JWT {
			if key, set = shared, nil; m.apart[shared] {
				key.process, set = c.Facts().Process, c.Selectors()
			}
		}
		s := m.slot(key)
		if s.is(set, audience) && m.fresh(s, e) {
			m.mu.Unlock()
			return s.svid, nil
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
		m.mu.Unlock()
		return m.issue(ctx, c, e, key, s, set, audience)
	}
}

// slot returns the slot of the key, which is now the one that was used last. With mu held.
func (m *Manager) slot(key slotKey) *slot {
	s := m.cache[key]
	if s == nil {
		s = &slot{}
		m.cache[key] = s
	}
	if key.kind != JWT {
		return s
	}
	if s.used != nil {
		m.tokens.MoveToFront(s.used)
		return s
	}
	s.used = m.tokens.PushFront(key)
	if m.tokens.Len() > maxTokens {
		last := m.tokens.Back().Value.(slotKey)
		m.drop(last, m.cache[last])
	}
	return s
}

// shared is the key without the process.
func (k slotKey) shared() slotKey {
	k.process = selectors.ProcessKey{}
	return k
}

// is: an SVID for just this audience, of a process that is still what it was.
func (s *slot) is(set selectors.Set, audience []string) bool {
	return s.svid != nil && slices.Equal(s.set, set) && slices.Equal(s.svid.Audience, audience)
}

// fresh: for this revision of the entry, and with more than half of its life before it.
func (m *Manager) fresh(s *slot, e *selectors.Entry) bool {
	v := s.svid
	return !s.tainted && v.EntryRevision == e.Revision && v.ID == e.SPIFFEID && m.now().Before(half(v))
}

func half(s *SVID) time.Time { return s.NotBefore.Add(s.NotAfter.Sub(s.NotBefore) / 2) }

// issue has an SVID signed for the entry and puts it into the slot, whose pending the caller set.
func (m *Manager) issue(ctx context.Context, c Caller, e *selectors.Entry, key slotKey, s *slot, set selectors.Set, audience []string) (*SVID, error) {
	svid, err := m.sign(ctx, c, e, key.kind, audience)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(s.pending)
	s.pending = nil
	if err != nil {
		if !s.is(set, audience) {
			return nil, err
		}
		return m.keep(e, key, s, err)
	}
	if key.kind != JWT && svid.perProcess == (key == key.shared()) {
		m.drop(key, s)
		if key, set = key.shared(), nil; svid.perProcess {
			m.apart[key] = true // who waits for the slot looks for his own
			key.process, set = c.Facts().Process, c.Selectors()
		} else {
			delete(m.apart, key)
		}
		s = m.slot(key)
	}
	s.svid, s.set, s.tainted = svid, set, false
	again := half(svid).Sub(m.now()) + rand.N(svid.NotAfter.Sub(svid.NotBefore)/20+1)
	taints := m.taints(svid) // told of it while the server signed, or the server does not know it yet
	switch {
	case key.kind == JWT && taints:
		m.drop(key, s)
	case key.kind == JWT:
	case taints:
		m.wake(e)
		m.schedule(key, s, retryAfter)
	default:
		m.wake(e)
		m.schedule(key, s, again)
	}
	return svid, nil
}

// keep answers with the last SVID where the server can not be asked. With mu held.
func (m *Manager) keep(e *selectors.Entry, key slotKey, s *slot, err error) (*SVID, error) {
	old := s.svid
	if refused(err) || old.ID != e.SPIFFEID || !m.now().Before(old.NotAfter) {
		return nil, err
	}
	m.log.Warn("keeping the last SVID, the server can not be asked", "kind", key.kind, "spiffe_id", e.SPIFFEID, "valid_until", old.NotAfter, "error", err)
	if key.kind != JWT {
		m.schedule(key, s, retryAfter)
	}
	return old, nil
}

// schedule arranges that listeners of the entry look again after d. With mu held.
func (m *Manager) schedule(key slotKey, s *slot, d time.Duration) {
	if s.renew != nil {
		s.renew.Stop()
	}
	s.renew = time.AfterFunc(d, func() { m.due(key, s) })
}

// due wakes the listeners of the entry, who ask again and so renew it. Without any, the SVID
// stays until its end, for a workload that comes while the server is away, and is then dropped.
func (m *Manager) due(key slotKey, s *slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.index.Get(key.entry)
	if e == nil || m.cache[key] != s || s.svid == nil {
		return
	}
	s.tainted = m.taints(s.svid)
	if m.wake(e) > 0 && key == key.shared() {
		return // by whom it is renewed; of one process we do not know whether it listens
	}
	if rest := s.svid.NotAfter.Sub(m.now()); rest > 0 {
		m.schedule(key, s, rest)
	} else {
		m.drop(key, s)
	}
}

// wake notifies the listeners that the entry matches and returns their number. With mu held.
func (m *Manager) wake(e *selectors.Entry) (listeners int) {
	demanded := e.SelectorSet()
	for sub := range m.subs {
		if demanded.SubsetOf(sub.set) {
			sub.notify()
			listeners++
		}
	}
	return listeners
}

// forget drops what was issued for the entries. With mu held.
func (m *Manager) forget(entries []string) {
	apart := len(m.apart) > 0
	for _, id := range entries {
		for _, kind := range []Kind{X509, WIT} {
			key := slotKey{kind: kind, entry: id}
			delete(m.apart, key)
			if s := m.cache[key]; s != nil {
				m.drop(key, s)
			}
		}
	}
	if len(entries) == 0 || m.tokens.Len() == 0 && !apart {
		return
	}
	gone := slices.Sorted(slices.Values(entries))
	for key, s := range m.cache {
		if _, ok := slices.BinarySearchFunc(gone, key.entry, cmp.Compare); ok {
			m.drop(key, s)
		}
	}
}

// drop forgets one SVID. With mu held.
func (m *Manager) drop(key slotKey, s *slot) {
	if s.renew != nil {
		s.renew.Stop()
	}
	if s.used != nil {
		m.tokens.Remove(s.used)
		s.used = nil
	}
	if m.cache[key] == s {
		delete(m.cache, key)
	}
}
