// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/assay-id/assay/selectors"
)

const (
	// retryAfter is how long a workload's last good SVID is served before the first failed renewal is tried again; it
	// doubles up to maxRetry.
	retryAfter = 2 * time.Second
	maxRetry   = time.Minute
	// renewalsAtOnce bounds the renewals under way. More of them, due at once after a clock jump or an outage, come
	// again within busySpread; their SVIDs are good until then. First SVIDs, and those that must be replaced, do not wait.
	renewalsAtOnce = 16
	busySpread     = 3 * time.Second
	// tick is how often the Manager looks at all SVIDs at least, whatever the clocks did.
	tick = 30 * time.Second
	// granule is how long what is due may wait for what is due soon after.
	granule = 20 * time.Millisecond
	// defaultGrace is how long SVIDs are kept after the last use.
	defaultGrace = 10 * time.Minute
)

// Failing says that the server can not be asked, as far as the Manager has tried.
type Failing struct {
	Since time.Time // zero: the last try was answered
	Next  time.Time // of the SVIDs that are due, the first is tried again
	Error string    // of the last try
}

// busy reports that a good SVID has to wait for its renewal, and sees to it that it is asked for again. With mu held.
func (m *Manager) busy(key slotKey, s *slot) bool {
	if m.renewing < renewalsAtOnce {
		return false
	}
	if key.kind != JWT {
		m.schedule(s, m.now().Add(rand.N(busySpread)))
	}
	return true
}

// failed answers where the server could not be asked or said no: with the last SVID if that is mine and still serves. With mu
// held.
func (m *Manager) failed(ctx context.Context, e *selectors.Entry, key slotKey, s *slot, mine bool, err error) (*SVID, error) {
	if lasting(err) || ctx.Err() != nil {
		return nil, err
	}
	now, old := m.now(), s.svid
	if m.failing.Since.IsZero() {
		m.failing.Since = now
	}
	m.failing.Error = err.Error()
	s.tries++
	wait := min(retryAfter<<min(s.tries-1, 10), maxRetry)
	wait = wait/2 + rand.N(wait)
	serves := mine && old.ID == e.SPIFFEID && now.Before(old.NotAfter) && !now.Before(old.NotBefore.Add(-clockSkew))
	if serves {
		wait = min(wait, max(old.NotAfter.Sub(now)/4, time.Second))
	}
	s.retry = now.Add(wait)
	if key.kind != JWT {
		m.schedule(s, s.retry)
	}
	if !serves {
		return nil, err
	}
	m.log.Warn("keeping the last SVID, the server can not be asked", "kind", key.kind, "spiffe_id", e.SPIFFEID, "valid_until", old.NotAfter,
		"next_try", s.retry, "error", err)
	return old, nil
}

// clockSkew is how far the server's clock may be ahead.
const clockSkew = time.Minute

// lasting reports whether a Signer's error is no fault that passes.
func lasting(err error) bool {
	var never interface{ Unsupported() bool }
	return refused(err) || errors.As(err, &never)
}

// schedule arranges that the slot's listeners look again at a time: of the wall clock if it comes from a certificate, else of
// the monotonic one, which does not jump. With mu held.
func (m *Manager) schedule(s *slot, at time.Time) {
	s.due = at
	m.arm(at)
}

// arm has look called at a time at the latest. With mu held.
func (m *Manager) arm(at time.Time) {
	if !m.next.IsZero() && !at.Before(m.next) {
		return
	}
	m.next = at
	wait := min(max(at.Sub(m.now()), granule, m.pause), tick)
	if m.timer == nil {
		m.timer = time.AfterFunc(wait, m.look)
	} else {
		m.timer.Reset(wait)
	}
}

// ClockSet says that the clock was set or the machine slept (agent/clock): what is due by it now is renewed now, and so is
// what is not valid yet.
func (m *Manager) ClockSet() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for key, s := range m.cache {
		switch {
		case s.svid == nil || !now.Before(s.svid.NotBefore):
		case key.kind == JWT:
			m.drop(key, s)
		default:
			s.stale, s.due = true, now.Add(rand.N(taintSpread))
		}
	}
	m.next = time.Time{}
	m.arm(now)
}

// look goes through all SVIDs: has those renewed that are due and listened to, and drops those that nobody needs.
func (m *Manager) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	began := time.Now()
	now, listeners := m.now(), m.listeners()
	away := !m.failing.Since.IsZero() || m.present != nil && !m.present()
	m.next = time.Time{}
	next := now.Add(tick)
	for key, s := range m.cache {
		if s.pending != nil {
			continue // it is scheduled when it is there
		}
		e := m.index.Get(key.entry)
		if e == nil || !m.needed(key, s, e, listeners, now, away) {
			m.drop(key, s)
		} else if !s.due.IsZero() && s.due.Before(next) {
			next = s.due
		}
	}
	m.pause = 10 * time.Since(began)
	if len(m.cache) > 0 {
		m.arm(next)
	}
}

// needed reports whether a slot is to be kept, and wakes its listeners if it is due. With mu held.
func (m *Manager) needed(key slotKey, s *slot, e *selectors.Entry, listeners map[string][]*Subscription, now time.Time, away bool) bool {
	switch {
	case key.kind == JWT:
		return s.svid != nil && now.Before(s.svid.NotAfter)
	case m.alone(e, key.kind) == (key == key.shared()):
		return false // of the entry as it was
	}
	listened := false
	for _, sub := range listeners[key.entry] {
		listened = listened || sub.of(key.process)
	}
	switch {
	case listened:
		s.used = now
	case s.svid == nil || !now.Before(s.svid.NotAfter):
		return false
	case key != key.shared() && m.alive != nil && !m.alive(key.process):
		return false
	case now.Sub(s.used) >= grace(e) && !away:
		return false
	}
	if s.due.IsZero() || now.Before(s.due) {
		return true
	}
	s.stale = s.stale || s.svid != nil && m.taints(s.svid)
	s.due = time.Time{} // until somebody asks
	if listened {
		s.due = now.Add(tick)
		m.wake(e, key.process)
	}
	return true
}

// grace: what is kept for nobody is neither renewed nor kept long. But while the server is away, it is kept to its end.
func grace(e *selectors.Entry) time.Duration {
	if e.Options.Grace > 0 {
		return e.Options.Grace
	}
	return defaultGrace
}

// listeners are the subscriptions by the entries that they match. With mu held.
func (m *Manager) listeners() map[string][]*Subscription {
	out := map[string][]*Subscription{}
	for sub := range m.subs {
		for _, e := range m.index.Match(sub.set) {
			out[e.ID] = append(out[e.ID], sub)
		}
	}
	return out
}

// wake notifies the listeners that the entry matches, of one process unless that is zero. With mu held.
func (m *Manager) wake(e *selectors.Entry, p selectors.ProcessKey) {
	demanded := e.SelectorSet()
	for sub := range m.subs {
		if sub.of(p) && demanded.SubsetOf(sub.set) {
			sub.notify()
		}
	}
}

// Expecting reports whether an SVID is wanted for any program as soon as that is executed.
func (m *Manager) Expecting() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.programs) > 0
}

// Expects reports whether an SVID is wanted for the program as soon as it is executed: Prefetch has it signed, if the process
// is what the entry demands.
func (m *Manager) Expects(program string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.programs[program] > 0
}

// Prefetch has the X.509-SVIDs signed that a process is going to ask for, of the entries that say so.
func (m *Manager) Prefetch(ctx context.Context, c Caller) error {
	var entries []*selectors.Entry
	for _, e := range m.Match(c.Selectors()) {
		if e.Prefetches() {
			entries = append(entries, e)
		}
	}
	_, err := m.X509(ctx, c, entries)
	return err
}

// count keeps account of the programs that are expected, and has keys made of the entry's type. With mu held.
func (m *Manager) count(e *selectors.Entry, n int) {
	if e.Prefetches() {
		if m.programs[e.Program()] += n; m.programs[e.Program()] == 0 {
			delete(m.programs, e.Program())
		}
	}
	if n > 0 && e.Options.KeyType != selectors.KeyDefault {
		m.keys.Expect(e.Options.KeyType)
	}
}
