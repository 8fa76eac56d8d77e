// SPDX-License-Identifier: Apache-2.0

package life

import (
	"strings"
	"testing"
	"time"
)

// table is every state with every event, in the order of the events; "-" can not be.
const table = `
starting         bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
bootstrapping    bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
attesting        bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
waiting          bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
connecting       -                re-attesting connecting following disconnected re-attesting pending suspended refused banned ended
following        -                re-attesting connecting following disconnected re-attesting pending suspended refused banned ended
disconnected     re-bootstrapping re-attesting connecting - disconnected re-attesting pending suspended refused banned ended
re-attesting     re-bootstrapping re-attesting connecting - disconnected re-attesting pending suspended refused banned ended
re-bootstrapping re-bootstrapping re-attesting connecting - disconnected re-attesting pending suspended refused banned ended
pending          bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
suspended        bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
refused          bootstrapping    attesting    connecting - waiting      waiting      pending suspended refused banned ended
banned           - - - - - - - - - - banned
ended            - - - - - - - - - - ended`

func TestEveryStateWithEveryEvent(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(table), "\n")
	if len(rows) != len(States()) {
		t.Fatalf("%d rows for %d states", len(rows), len(States()))
	}
	named := func(word string) State {
		if word == "pending" {
			return Pending
		}
		return State(word)
	}
	for i, row := range rows {
		cells := strings.Fields(row)
		if named(cells[0]) != States()[i] || len(cells) != 1+int(events) {
			t.Fatalf("row %d: %q", i, row)
		}
		for e := range events {
			from, want := States()[i], cells[1+e]
			to, ok := next(from, e)
			if ok != (want != "-") || ok && to != named(want) {
				t.Errorf("%s, event %d: %s, %v; want %s", from, e, to, ok, want)
			}
		}
	}
}

// From every state that is not final the agent can come to follow again, and nothing that is served is
// unserved by a fault.
func TestNoStateIsStuck(t *testing.T) {
	for _, s := range States() {
		if s.final() {
			continue
		}
		l := &Life{now: time.Now, status: Status{State: s}}
		l.Failed(Lose, "a fault", time.Second)
		if got := l.Status().State.Serving(); got != s.Serving() {
			t.Errorf("%s: after a fault serving is %v", s, got)
		}
		for _, e := range []Event{Attest, Connect, Hear} {
			if !l.Take(e) {
				t.Errorf("%s: event %d is refused", s, e)
			}
		}
		if got := l.Status(); got.State != Following || got.Reason != "" || !got.Next.IsZero() {
			t.Errorf("%s: comes to %+v", s, got)
		}
	}
}

func TestStatus(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(func() time.Time { return now })
	l.Take(Attest)
	l.Take(Connect)
	l.Heard("10.0.0.1:8081")
	now = now.Add(time.Minute)
	l.Failed(Lose, "it is away", 3*time.Second)
	want := Status{State: Disconnected, Since: now, Reason: "it is away", Next: now.Add(3 * time.Second), Server: "10.0.0.1:8081", Heard: time.Unix(1000, 0)}
	if got := l.Status(); got != want {
		t.Errorf("got %+v", got)
	}
	now = now.Add(time.Minute)
	l.Failed(Lose, "it is still away", 3*time.Second)
	if got := l.Status(); got.Since != want.Since || got.Reason != "it is still away" {
		t.Errorf("got %+v", got)
	}
	l.Take(Connect) // says nothing new of the fault
	if got := l.Status(); got.Reason == "" || !got.Next.IsZero() {
		t.Errorf("got %+v", got)
	}
	l.Failed(Lose, "it is still away", time.Second) // and so does a try
	if got := l.Status(); got.Since != want.Since {
		t.Errorf("disconnected since %s, want %s", got.Since, want.Since)
	}
	l.Take(Connect)
	if l.Take(Bootstrap) || l.Status().State != Connecting {
		t.Error("bootstrapped while connecting")
	}
}
