// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the results of this kernel and the document")

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv("REDTEAM_ROLE")]; ok {
		role()
		return
	}
	os.Exit(m.Run())
}

// TestAttacks runs every attack against both attestors.
func TestAttacks(t *testing.T) {
	if os.Getenv("ASSAY_NO_SKIP") != "1" && os.Geteuid() != 0 {
		t.Skip("this loads programs into the kernel: run it as root")
	}
	a := newArena(t)
	var run []Result
	for _, attack := range Attacks {
		t.Run(attack.ID, func(t *testing.T) {
			r := a.attack(t, attack)
			fmt.Println(r)
			run = append(run, r)
			if wrong := attack.Judge(r); wrong != "" {
				t.Errorf("%s (%s)", wrong, r.Evidence)
			}
		})
	}
	compare(t, run)
}

// compare demands that the document says what was seen. In a guest there is no document: tests/guest
// compares what the guest printed.
func compare(t *testing.T, run []Result) {
	if os.Getenv("ASSAY_GUEST") == "1" || len(run) < len(Attacks) {
		return
	}
	if *update && !t.Failed() {
		check(Update("../..", run))
	}
	for _, d := range Compare(must(ReadResults("testdata/results.txt")), run) {
		t.Errorf("%s; if that is right, run with -update", d)
	}
}

// TestDocument: the committed page is made of the committed results, and every column is whole.
func TestDocument(t *testing.T) {
	if os.Getenv("ASSAY_GUEST") == "1" || *update {
		return
	}
	results := must(ReadResults("testdata/results.txt"))
	if got := string(must(os.ReadFile("../../" + DocumentFile))); got != Document(results) {
		t.Error("the page is not made of testdata/results.txt and attacks.go: run with -update")
	}
	for _, c := range columnsOf(results) {
		rows := Select(results, c)
		for _, a := range Attacks {
			if _, ok := rows[a.ID]; !ok {
				t.Errorf("%s on %s has no result for %s", c.Tier, c.Kernel, a.ID)
			}
		}
	}
}

func (a *arena) attack(t *testing.T, attack Attack) Result {
	play, ok := plays[attack.ID]
	if !ok {
		t.Fatal("nobody plays this attack")
	}
	run := func(ours bool) (v verdict, note string) {
		s := a.scene(t, attack, ours)
		defer s.end()
		v = play(s)
		return v, s.note
	}
	old, _ := run(false)
	since := a.logs.len()
	now, note := run(true)
	r := Result{Kernel: a.kernel, Tier: a.tier, ID: attack.ID, Evidence: "the identity arrived", PeerCred: NoIdentity}
	switch {
	case old.delivered:
		r.PeerCred = Delivered
	case old.denied:
		r.PeerCred = Denied
	}
	switch {
	case now.delivered:
		r.Outcome = Delivered
	case now.denied:
		r.Outcome, r.Evidence = Denied, now.detail
	default:
		if r.Outcome, r.Evidence = a.reason(since); r.Outcome == "" {
			t.Fatalf("nothing was delivered (%s), and the agent does not say why", now.detail)
		}
	}
	r.Evidence += note
	time.Sleep(20 * time.Millisecond) // late lines of this attack
	return r
}
