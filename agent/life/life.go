// SPDX-License-Identifier: Apache-2.0

// Package life is an agent's life with its server, as a state machine: what the agent is doing now, since
// when, why, and when it tries next. It decides nothing; agent/upstream tells it each event.
//
//	starting ─▶ bootstrapping ─▶ attesting ─▶ connecting ◀─▶ following
//	   │             │               │             │              │
//	   └─────────────┴── lost ───────┤             └──── lost ────┤  again
//	                                 ▼                            ▼
//	                              waiting                  disconnected ─▶ re-attesting ─▶ connecting
//
// From everywhere: pending, suspended and refused, from which the agent attests again; banned and ended
// are final.
package life

import (
	"sync"
	"time"
)

// State is what the agent is doing. Its text is for people and for metrics.
type State string

// The states. Workloads are served in those that Serving names.
const (
	Starting      State = "starting"
	Bootstrapping State = "bootstrapping" // fetches what authenticates the server
	Attesting     State = "attesting"     // proves the node; workloads have nothing yet, or nothing any more
	Waiting       State = "waiting"       // for the next try; as Attesting
	Connecting    State = "connecting"    // has an identity, and no word from the server yet
	Following     State = "following"     // hears of each change
	Disconnected  State = "disconnected"  // serves from memory
	Reattesting   State = "re-attesting"  // proves the node again; serves from memory
	Rebootstraps  State = "re-bootstrapping"
	Pending       State = "pending approval"
	Suspended     State = "suspended"
	Refused       State = "refused" // the server judged the node's proof, and said no
	Banned        State = "banned"
	Ended         State = "ended"
)

// States are all of them.
func States() []State {
	return []State{Starting, Bootstrapping, Attesting, Waiting, Connecting, Following, Disconnected, Reattesting, Rebootstraps, Pending, Suspended, Refused, Banned, Ended}
}

// Serving reports whether workloads get what the agent has of them.
func (s State) Serving() bool {
	switch s {
	case Connecting, Following, Disconnected, Reattesting, Rebootstraps:
		return true
	}
	return false
}

// trouble reports whether the agent waits to be well again: a try that changes nothing does not begin it anew.
func (s State) trouble() bool {
	return s == Waiting || s == Disconnected || s == Pending || s == Suspended || s == Refused
}

// final states have no way out.
func (s State) final() bool { return s == Banned || s == Ended }

// Event is what happens.
type Event uint8

// The events.
const (
	Bootstrap Event = iota // the agent begins to fetch what authenticates the server
	Attest                 // it begins to prove the node
	Connect                // it has an identity, by whatever way, and calls
	Hear                   // the server's first word on a connection
	Lose                   // a fault that may pass
	Again                  // the server wants a new attestation: it forgot the node, for one
	Hold                   // the server waits for an operator's approval
	Suspend                // an operator or a policy suspended the node
	Refuse                 // the server does not admit the node
	Ban                    // an operator banned the node
	Stop                   // the agent ends
	events
)

// next is the state that an event leads to; ok is false for an event that can not be there.
func next(s State, e Event) (_ State, ok bool) {
	if s.final() {
		return s, e == Stop
	}
	switch e {
	case Bootstrap:
		switch {
		case s == Connecting || s == Following:
			return s, false
		case s.Serving():
			return Rebootstraps, true
		}
		return Bootstrapping, true
	case Attest:
		return either(s, Reattesting, Attesting), true
	case Connect:
		return Connecting, true
	case Hear:
		if s != Connecting && s != Following {
			return s, false
		}
		return Following, true
	case Lose:
		return either(s, Disconnected, Waiting), true
	case Again:
		return either(s, Reattesting, Waiting), true
	case Hold:
		return Pending, true
	case Suspend:
		return Suspended, true
	case Refuse:
		return Refused, true
	case Ban:
		return Banned, true
	}
	return Ended, e == Stop
}

func either(s, serving, not State) State {
	if s.Serving() {
		return serving
	}
	return not
}

// Status is the machine's present state.
type Status struct {
	State State
	// Since is when it began; tries that change nothing do not count.
	Since time.Time
	// Reason is the last fault or refusal; empty when all is well.
	Reason string
	// Next is when the agent tries again; zero when it does not wait.
	Next time.Time
	// Server is the address of the server that was heard last, Heard when its first word on the last connection came.
	Server string
	Heard  time.Time
}

// Life is the machine, for concurrent use.
type Life struct {
	now func() time.Time

	mu      sync.Mutex
	status  Status
	trouble State     // since when it was last well, whatever was tried meanwhile
	since   time.Time // of trouble
}

// New returns a machine that is Starting.
func New(now func() time.Time) *Life {
	return &Life{now: now, status: Status{State: Starting, Since: now()}}
}

// Status returns the present state.
func (l *Life) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Take takes an event. It reports false, and changes nothing, for one that can not be there now.
func (l *Life) Take(e Event) bool { return l.take(e, "", "", 0) }

// Heard is Take(Hear) from the server at that address.
func (l *Life) Heard(server string) bool { return l.take(Hear, server, "", 0) }

// Failed is Take for an event with a reason, after which the agent waits.
func (l *Life) Failed(e Event, reason string, wait time.Duration) bool {
	return l.take(e, "", reason, wait)
}

func (l *Life) take(e Event, server, reason string, wait time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	to, ok := next(l.status.State, e)
	if !ok {
		return false
	}
	now := l.now()
	switch {
	case to == Following:
		l.trouble = ""
	case to.trouble() && to != l.trouble:
		l.trouble, l.since = to, now
	}
	if to != l.status.State {
		l.status.State, l.status.Since = to, now
	}
	if to == l.trouble {
		l.status.Since = l.since
	}
	l.status.Next = time.Time{}
	if wait > 0 {
		l.status.Next = now.Add(wait)
	}
	if reason != "" || to == Following {
		l.status.Reason = reason
	}
	if e == Hear {
		l.status.Server, l.status.Heard = server, now
	}
	return true
}
