// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/assay-id/assay/selectors"
)

// slot is what the Manager holds for one entry. All fields belong to Manager.mu.
type slot struct {
	svid    *SVID         // nil before the first issue
	pending chan struct{} // closed when the issue under way ends; nil when none is
	err     error         // of the last issue
	renew   *time.Timer
}

// retryAfter is how long a workload's last good SVID is served before a failed renewal is tried again.
const retryAfter = 2 * time.Second

// X509 returns the SVIDs of every entry that the set satisfies, in Match's order, asking the
// server for those that are missing, out of date, or past their half life.
//
// When the server can not be reached, an SVID that is still valid and is for the same SPIFFE
// ID is returned rather than none. An entry that the server refuses is left out; its reason
// is returned beside the others.
func (m *Manager) X509(ctx context.Context, facts *selectors.Facts, set selectors.Set) ([]*SVID, error) {
	var out []*SVID
	var errs []error
	for _, e := range m.Match(set) {
		s, err := m.one(ctx, e, facts)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %s (%s): %w", e.ID, e.SPIFFEID, err))
			continue
		}
		out = append(out, s)
	}
	return out, errors.Join(errs...)
}

func (m *Manager) one(ctx context.Context, e *selectors.Entry, facts *selectors.Facts) (*SVID, error) {
	for {
		m.mu.Lock()
		s := m.cache[e.ID]
		if s == nil {
			s = &slot{}
			m.cache[e.ID] = s
		}
		if s.svid != nil && m.fresh(s.svid, e) {
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
		return m.issue(ctx, e, facts, s)
	}
}

// fresh: for this revision of the entry, and with more than half of its life before it.
func (m *Manager) fresh(s *SVID, e *selectors.Entry) bool {
	return s.EntryRevision == e.Revision && s.ID == e.SPIFFEID && m.now().Before(half(s))
}

func half(s *SVID) time.Time { return s.NotBefore.Add(s.NotAfter.Sub(s.NotBefore) / 2) }

// issue has a new key signed for the entry and puts it into the slot, whose pending the caller set.
func (m *Manager) issue(ctx context.Context, e *selectors.Entry, facts *selectors.Facts, s *slot) (*SVID, error) {
	svid, err := m.sign(ctx, e, facts)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(s.pending)
	s.pending, s.err = nil, err
	if err != nil {
		old := s.svid
		if old == nil || refused(err) || old.ID != e.SPIFFEID || !m.now().Before(old.NotAfter) {
			return nil, err
		}
		m.log.Warn("keeping the last SVID, the server can not be asked", "spiffe_id", e.SPIFFEID, "valid_until", old.NotAfter, "error", err)
		m.schedule(e.ID, s, retryAfter)
		return old, nil
	}
	s.svid = svid
	m.wake(e)
	life := svid.NotAfter.Sub(svid.NotBefore)
	jitter := time.Duration(rand.Int64N(int64(life/20) + 1))
	m.schedule(e.ID, s, half(svid).Sub(m.now())+jitter)
	return svid, nil
}

func (m *Manager) sign(ctx context.Context, e *selectors.Entry, facts *selectors.Facts) (*SVID, error) {
	key, csr, err := makeKey(e.SPIFFEID)
	if err != nil {
		return nil, err
	}
	chain, err := m.signer.SignX509SVID(ctx, e, csr, facts)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	svid := &SVID{EntryID: e.ID, EntryRevision: e.Revision, ID: e.SPIFFEID, Key: key, Hint: e.Hint,
		Serial: leaf.SerialNumber.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	for _, c := range chain {
		svid.Chain = append(svid.Chain, c.Raw...)
	}
	return svid, nil
}

// schedule arranges that listeners of the entry look again after d. With mu held.
func (m *Manager) schedule(entryID string, s *slot, d time.Duration) {
	if s.renew != nil {
		s.renew.Stop()
	}
	s.renew = time.AfterFunc(d, func() { m.due(entryID, s) })
}

// due wakes the listeners of the entry, who ask again and so renew it. Without any, the SVID
// stays until its end, for a workload that comes while the server is away, and is then dropped.
func (m *Manager) due(entryID string, s *slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.index.Get(entryID)
	if e == nil || m.cache[entryID] != s {
		return
	}
	if m.wake(e) > 0 {
		return
	}
	if rest := s.svid.NotAfter.Sub(m.now()); rest > 0 {
		m.schedule(entryID, s, rest)
	} else {
		m.drop(entryID)
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

// drop forgets the SVID of an entry. With mu held.
func (m *Manager) drop(entryID string) {
	if s := m.cache[entryID]; s != nil {
		if s.renew != nil {
			s.renew.Stop()
		}
		delete(m.cache, entryID)
	}
}

// Subscription wakes a listener whenever X509 or TrustBundle may answer differently.
type Subscription struct {
	m    *Manager
	set  selectors.Set
	wake chan struct{}
}

// Subscribe starts to listen on behalf of a process with the given selectors. Close it.
func (m *Manager) Subscribe(set selectors.Set) *Subscription {
	s := &Subscription{m: m, set: set, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	m.subs[s] = struct{}{}
	m.mu.Unlock()
	return s
}

// C receives after a change; several changes may be one receive.
func (s *Subscription) C() <-chan struct{} { return s.wake }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	delete(s.m.subs, s)
	s.m.mu.Unlock()
}

func (s *Subscription) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
