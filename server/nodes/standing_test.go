// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

func tpmAgent(b byte) (spiffeid.ID, selectors.Digest) {
	ek := selectors.Digest{b}
	return spiffeid.RequireFromPath(td, "/spire/agent/tpm/"+ek.String()), ek
}

func TestSuspend(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	here, there := open(t, s, c), open(t, s, c)
	ctx, end := t.Context(), c.now().Add(time.Hour)
	id, _ := tpmAgent(1)
	a := Attestation{ID: id, Type: "tpm", CanReattest: true}
	_, err := here.Attested(ctx, a, "1", end)
	must(t, err)
	if n := here.Get(id); n.State != StateAdmitted || n.By != ByAttestation || n.Since.IsZero() || n.History != nil {
		t.Fatalf("%+v", n.Standing)
	}
	must(t, here.Suspend(ctx, id, "PCR 10 moved", ByDrift))
	for _, r := range []*Registry{here, there} {
		eventually(t, func() bool { return r.Get(id).State == StateSuspended })
		err := r.Authorize(ctx, id, "1", end)
		denied(t, err, Suspended)
		for _, want := range []string{"by drift: PCR 10 moved", "assay node readmit " + id.String()} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
	if n := here.Get(id); n.Serial != "1" || len(n.History) != 1 || n.History[0].State != StateAdmitted {
		t.Errorf("%+v", n)
	}
	// Neither attesting nor renewing lifts it, and the first reason stays.
	denied(t, here.Admissible(id), Suspended)
	_, err = here.Attested(ctx, a, "2", end)
	denied(t, err, Suspended)
	denied(t, here.Renewable(ctx, id), Suspended)
	a.Pending = "its EK is unknown"
	denied(t, here.Hold(ctx, a), Suspended)
	must(t, here.Suspend(ctx, id, "again", ByClone))
	if n := here.Get(id); n.Standing.Reason != "PCR 10 moved" {
		t.Errorf("%+v", n.Standing)
	}
	a.Pending = ""
	var state *StateError
	if err := here.Approve(ctx, id, "operator root"); !errors.As(err, &state) {
		t.Errorf("Approve of a suspended node = %v", err)
	}
	// Readmitted: it must attest again.
	must(t, here.Readmit(ctx, id, "operator root"))
	denied(t, there.Authorize(ctx, id, "1", end), NotActive)
	_, err = there.Attested(ctx, a, "3", end)
	must(t, err)
	must(t, here.Authorize(ctx, id, "3", end))

	must(t, here.Ban(ctx, id, "stolen", "operator root"))
	err = here.Authorize(ctx, id, "3", end)
	denied(t, err, Banned)
	if !strings.Contains(err.Error(), "by operator root: stolen") {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"Suspend": here.Suspend(ctx, id, "", "x"), "Readmit": here.Readmit(ctx, id, "x"), "Approve": here.Approve(ctx, id, "x"),
	} {
		if !errors.As(err, &state) || state.State != StateBanned {
			t.Errorf("%s of a banned node = %v", what, err)
		}
	}
	gone, _ := tpmAgent(99)
	for what, err := range map[string]error{
		"Suspend": here.Suspend(ctx, gone, "", "x"), "Readmit": here.Readmit(ctx, gone, "x"), "Approve": here.Approve(ctx, gone, "x"),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of nobody: %v", what, err)
		}
	}
}

// TestReadmitWithoutReattesting: a join token is spent, so its agent goes on with its SVID.
func TestReadmitWithoutReattesting(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	end := c.now().Add(time.Hour)
	id := attest(t, r, "one", "1", end)
	must(t, r.Suspend(t.Context(), id, "maintenance", "operator root"))
	denied(t, r.Authorize(t.Context(), id, "1", end), Suspended)
	must(t, r.Readmit(t.Context(), id, "operator root"))
	must(t, r.Authorize(t.Context(), id, "1", end))
}

// TestReadmitByAttestation: with that configuration an attestation lifts drift, never a clone
// and never what an operator did.
func TestReadmitByAttestation(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	r.cfg.ReadmitByAttestation = true
	ctx, end := t.Context(), c.now().Add(time.Hour)
	for by, lifts := range map[string]bool{ByDrift: true, ByPolicy: true, ByClone: false, "operator root": false} {
		id := attest(t, r, strings.ReplaceAll(by, " ", "-"), "1", end)
		must(t, r.Suspend(ctx, id, "why", by))
		err := r.Authorize(ctx, id, "1", end)
		denied(t, err, Suspended)
		var d *DeniedError
		if errors.As(err, &d); d.Reattest != lifts {
			t.Errorf("%s: attesting again helps: %v", by, d.Reattest)
		}
		_, err = r.Attested(ctx, Attestation{ID: id, Type: "test"}, "2", end)
		if lifts {
			must(t, err)
			must(t, r.Authorize(ctx, id, "2", end))
		} else {
			denied(t, err, Suspended)
		}
	}
}

func TestPendingDoor(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	r := open(t, s, c)
	inv := openInventory(t, s, c)
	ctx, end := t.Context(), c.now().Add(time.Hour)
	id, ek := tpmAgent(1)
	a := Attestation{ID: id, Type: "tpm", CanReattest: true, Selectors: selectors.NewSet(selectors.Selector{Type: "tpm", Value: "x"}), Pending: "its EK is under no known CA"}
	err := r.Hold(ctx, a)
	denied(t, err, Pending)
	if !strings.Contains(err.Error(), "assay node approve "+id.String()) || !strings.Contains(err.Error(), a.Pending) {
		t.Error(err)
	}
	first := r.Get(id)
	if first.State != StatePending || len(first.Selectors) != 1 || first.Serial != "" {
		t.Fatalf("%+v", first)
	}
	denied(t, r.Authorize(ctx, id, "1", end), Pending)
	denied(t, r.Hold(ctx, a), Pending)
	if r.Get(id) != first {
		t.Error("each attempt is written")
	}
	must(t, r.Approve(ctx, id, "operator root"))
	if d := inv.Get(ek); d == nil || d.By != "operator root" {
		eventually(t, func() bool { return inv.Known(ek) })
	}
	if n := r.Get(id); n.State != StateAdmitted || n.By != "operator root" {
		t.Errorf("%+v", n.Standing)
	}
	denied(t, r.Authorize(ctx, id, "1", end), NotActive)
	a.Pending = ""
	_, err = r.Attested(ctx, a, "1", end)
	must(t, err)
	must(t, r.Authorize(ctx, id, "1", end))

	// A node that is not in the inventory any more waits again, and holds nothing meanwhile.
	a.Pending = "gone from the inventory"
	denied(t, r.Hold(ctx, a), Pending)
	denied(t, r.Authorize(ctx, id, "1", end), Pending)
	// One that gives up is forgotten.
	other, _ := tpmAgent(2)
	denied(t, r.Hold(ctx, Attestation{ID: other, Type: "tpm", Pending: "x"}), Pending)
	c.advance(5 * 24 * time.Hour)
	denied(t, r.Hold(ctx, Attestation{ID: other, Type: "tpm", Pending: "x"}), Pending)
	c.advance(3 * 24 * time.Hour)
	if n, err := r.PrunePending(ctx); n != 1 || err != nil || r.Get(id) != nil || r.Get(other) == nil {
		t.Errorf("pruned %d, %v", n, err)
	}
	// A token's agent can not be approved: nobody would know its EK.
	if err := r.Approve(ctx, agent("x"), "operator root"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Approve of an agent without a TPM = %v", err)
	}
}

func TestPendingIsBounded(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	for i := range maxPending + 1 {
		ek := selectors.Digest{byte(i), byte(i >> 8)}
		err := r.Hold(t.Context(), Attestation{ID: spiffeid.RequireFromPath(td, "/spire/agent/tpm/"+ek.String()), Type: "tpm", Pending: "x"})
		if i < maxPending {
			denied(t, err, Pending)
		} else if !errors.Is(err, ErrTooManyPending) {
			t.Errorf("number %d: %v", i+1, err)
		}
	}
}

// TestOldRecords: before there were states there was banned, or not.
func TestOldRecords(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	for name, banned := range map[string]bool{"good": false, "bad": true} {
		_, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: "n" + agent(name).Path(), Value: fmt.Appendf(nil,
			`{"id":%q,"attestation_type":"join_token","serial":"7","not_after":"2027-01-01T00:00:00Z","banned":%v,"created_at":"2026-01-01T00:00:00Z","attested_at":"2026-01-02T00:00:00Z"}`, agent(name), banned)}}})
		must(t, err)
	}
	r := open(t, s, c)
	end := c.now().Add(time.Hour)
	must(t, r.Authorize(t.Context(), agent("good"), "7", end))
	denied(t, r.Authorize(t.Context(), agent("bad"), "7", end), Banned)
	if n := r.Get(agent("bad")); n.State != StateBanned || n.Since.Year() != 2026 {
		t.Errorf("%+v", n)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	id := attest(t, r, "one", "1", c.now().Add(time.Hour))
	for i := range 12 {
		must(t, r.Suspend(t.Context(), id, fmt.Sprint(i), "operator root"))
		must(t, r.Readmit(t.Context(), id, "operator root"))
	}
	n := r.Get(id)
	if len(n.History) != maxHistory || n.History[maxHistory-1].Reason != "11" || n.History[0].State != StateAdmitted {
		t.Errorf("%d: %+v", len(n.History), n.History)
	}
}

func openInventory(t *testing.T, s Store, c *clock) *Inventory {
	t.Helper()
	inv, err := OpenInventory(t.Context(), s, quiet(t), c.now)
	must(t, err)
	t.Cleanup(inv.Close)
	return inv
}

func TestInventory(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	here, there := openInventory(t, s, c), openInventory(t, s, c)
	ctx := t.Context()
	var many []Device
	for i := range store.MaxOps + 10 {
		many = append(many, Device{EK: selectors.Digest{1, byte(i), byte(i >> 8)}})
	}
	must(t, here.Add(ctx, many, "operator root"))
	if got := here.List(); len(got) != len(many) || got[0].By != "operator root" || got[0].AddedAt.IsZero() {
		t.Fatalf("%d devices", len(got))
	}
	one := selectors.Digest{9}
	must(t, there.Add(ctx, []Device{{EK: one, Label: "old"}, {EK: one, Label: "rack 7", Group: "db", Note: "n"}}, "operator eve"))
	eventually(t, func() bool { return here.Known(one) })
	if d := here.Get(one); d.Label != "rack 7" || d.Group != "db" || d.Note != "n" || d.By != "operator eve" || d.EK != one {
		t.Errorf("%+v", d)
	}
	n, err := here.Remove(ctx, []selectors.Digest{one, one, {77}})
	if n != 1 || err != nil || here.Known(one) {
		t.Errorf("removed %d, %v", n, err)
	}
	eventually(t, func() bool { return !there.Known(one) })
	again := openInventory(t, s, c)
	if len(again.List()) != len(many) {
		t.Error("the inventory does not outlive the process")
	}
}
