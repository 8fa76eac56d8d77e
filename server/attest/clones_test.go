// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"strings"
	"testing"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
	"github.com/assay-id/assay/tpm/verify"
)

// TestClones copies the state of a software TPM.
func TestClones(t *testing.T) {
	p := swtpmtest.New(t)
	w := newWatch(t, p, nil)
	a := w.agent(p, swtpmtest.Logs{})
	must(t, a.attest(t.Context()))
	end, stop := a.watched()
	defer stop()
	p.Off()
	copied := p.Copy() // both boot once more
	p.On()
	<-end
	must(t, a.attest(t.Context()))
	end, _ = a.watched()

	clone := w.agent(copied, swtpmtest.Logs{})
	err := clone.attest(t.Context())
	denied(t, err, nodes.Suspended)
	n := w.registry.Get(a.id)
	if n.By != nodes.ByClone {
		t.Fatalf("%+v", n.Standing)
	}
	t.Log(n.Standing.Reason)
	// The genuine machine is suspended, too: nobody can tell which one it is. An operator can.
	select {
	case err := <-end:
		t.Logf("the genuine one's stream: %v", err)
	default: // the API ends it, since the node is no longer admitted
	}
	denied(t, a.attest(t.Context()), nodes.Suspended)
	must(t, w.registry.Readmit(t.Context(), a.id, "operator root"))
	stop()
	must(t, a.attest(t.Context()))
}

// TestTwoSessions: a copy in step with the original, as a snapshot of a virtual machine makes one, is
// told only by the fact that both answer.
func TestTwoSessions(t *testing.T) {
	p := swtpmtest.New(t)
	w := newWatch(t, p, nil)
	a := w.agent(p, swtpmtest.Logs{})
	must(t, a.attest(t.Context()))
	_, stop := a.watched()
	twin := w.agent(p, swtpmtest.Logs{}) // same TPM, same counters, another agent
	twin.id = a.id
	denied(t, twin.attest(t.Context()), nodes.Suspended)
	if n := w.registry.Get(a.id); n.By != nodes.ByClone || !strings.Contains(n.Standing.Reason, "two agents answer") {
		t.Errorf("%+v", n.Standing)
	}
	stop()
	must(t, w.registry.Readmit(t.Context(), a.id, "operator root"))
	must(t, a.attest(t.Context()))
	// With the SVID of the other: a second stream beside a living one.
	_, stop = a.watched()
	defer stop()
	denied(t, twin.stream(t.Context()), nodes.Suspended)
}

// pair are two servers over one store, and a TPM with a copy that was booted less often.
func pair(t *testing.T) (here, there *watch, genuine, copied *swtpmtest.TPM) {
	t.Helper()
	genuine = swtpmtest.New(t)
	genuine.Off()
	copied = genuine.Copy()
	for range 2 {
		genuine.On()
		genuine.Off()
	}
	genuine.On()
	s := storetest.Open(t)
	return newWatchOver(t, s, genuine, nil), newWatchOver(t, s, genuine, nil), genuine, copied
}

// banished waits until both servers know that the node is suspended as a clone, by its counters.
func banished(t *testing.T, a *honest, servers ...*watch) {
	t.Helper()
	for _, w := range servers {
		eventually(t, func() bool { return w.registry.Get(a.id).State == nodes.StateSuspended })
		if n := w.registry.Get(a.id); n.By != nodes.ByClone || !strings.Contains(n.Standing.Reason, "counters went back, from reset ") {
			t.Errorf("%+v", n.Standing)
		}
	}
}

// TestCountersWentBack: a copy that attests at another server than the original did is told by its counters,
// which the servers' store has.
func TestCountersWentBack(t *testing.T) {
	here, there, genuine, copied := pair(t)
	a := here.agent(genuine, swtpmtest.Logs{})
	must(t, a.attest(t.Context()))
	eventually(t, func() bool { return there.registry.Get(a.id) != nil })
	clone := there.agent(copied, swtpmtest.Logs{})
	denied(t, clone.attest(t.Context()), nodes.Suspended)
	banished(t, a, here, there)
	denied(t, a.attest(t.Context()), nodes.Suspended)
}

// TestCountersWentBackInAStream: the copy comes with the original's SVID, so that it need not attest.
func TestCountersWentBackInAStream(t *testing.T) {
	here, there, genuine, copied := pair(t)
	a := here.agent(genuine, swtpmtest.Logs{})
	must(t, a.attest(t.Context()))
	eventually(t, func() bool { return there.registry.Get(a.id) != nil })
	clone := there.agent(copied, swtpmtest.Logs{})
	clone.id = a.id
	denied(t, clone.stream(t.Context()), nodes.Suspended)
	banished(t, a, here, there)
}

// TestCopyThatIsAhead: a copy that was booted more often gets in at another server, and is found out as soon
// as the original shows itself again; then both are out.
func TestCopyThatIsAhead(t *testing.T) {
	here, there, genuine, copied := pair(t)
	a := here.agent(copied, swtpmtest.Logs{}) // the two change places: nobody can tell which is the original
	must(t, a.attest(t.Context()))
	end, stop := a.watched()
	defer stop()
	eventually(t, func() bool { return there.registry.Get(a.id) != nil })
	clone := there.agent(genuine, swtpmtest.Logs{})
	must(t, clone.attest(t.Context()))
	attested := there.registry.Get(a.id).AttestedAt
	eventually(t, func() bool { return here.registry.Get(a.id).AttestedAt.Equal(attested) })
	stop() // the API ends the stream: its SVID counts no longer
	<-end
	denied(t, a.attest(t.Context()), nodes.Suspended)
	banished(t, a, here, there)
	denied(t, clone.attest(t.Context()), nodes.Suspended)
}

// TestBefore: what counts, in order.
func TestBefore(t *testing.T) {
	at := func(reset, restart uint32, clock uint64) verify.Quoted {
		return verify.Quoted{ResetCount: reset, RestartCount: restart, Clock: clock}
	}
	for _, c := range []struct {
		quoted, last verify.Quoted
		back         bool
	}{
		{at(5, 1, 10), at(5, 1, 11), true}, {at(5, 1, 11), at(5, 1, 11), false}, {at(5, 1, 12), at(5, 1, 11), false},
		{at(5, 1, 99), at(5, 2, 11), true}, {at(5, 2, 1), at(5, 1, 11), false}, {at(4, 9, 99), at(5, 1, 11), true}, {at(6, 0, 0), at(5, 1, 11), false},
	} {
		_, err := advance(&nodes.TPMState{Quoted: c.last}, c.quoted, tpm.History{}, nil)
		d, _ := err.(*deviation)
		if back := d != nil && d.by == nodes.ByClone; back != c.back {
			t.Errorf("%+v after %+v: %v", c.quoted, c.last, err)
		}
	}
}
