// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func set(texts ...string) Set {
	var ss []Selector
	for _, t := range texts {
		s, err := Parse(t)
		if err != nil {
			panic(err)
		}
		ss = append(ss, s)
	}
	return NewSet(ss...)
}

func TestParse(t *testing.T) {
	s, err := Parse("unix:uid:1000")
	if err != nil || s != (Selector{"unix", "uid:1000"}) || s.String() != "unix:uid:1000" {
		t.Errorf("got %v, %v", s, err)
	}
	for _, bad := range []string{"", "unix", ":uid", "unix:"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"unix:uid:1", "a:b:c:", ":", "a:", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := Parse(text); err == nil && s.String() != text {
			t.Errorf("%q became %q", text, s)
		}
	})
}

func TestSetAlgebra(t *testing.T) {
	a, b := set("x:1", "x:2", "y:1", "x:1"), set("y:1", "x:1")
	if len(a) != 3 || !b.SubsetOf(a) || a.SubsetOf(b) || !Set(nil).SubsetOf(b) {
		t.Errorf("subset is wrong: %v %v", a, b)
	}
	if m := a.Missing(b); !m.Equal(set("x:2")) {
		t.Errorf("missing: %v", m)
	}
	if !a.Intersects(b) || a.Intersects(set("z:1")) || !a.Contains(Selector{"x", "2"}) || b.Contains(Selector{"x", "2"}) {
		t.Error("intersects or contains is wrong")
	}
}

func facts() *Facts {
	return &Facts{
		Process:    ProcessKey{BootID: "b", TGID: 10, StartBoottime: 5, ExecID: 7},
		Tier:       TierT2,
		Executable: Executable{Path: "/usr/bin/pay", SHA256: Digest{1}},
		Credentials: Credentials{UID: 1000, GID: 100, User: "pay",
			SupplementaryGroups: []Group{{GID: 27, Name: "sudo"}, {GID: 4711}}},
		Cgroup:    Cgroup{ID: 3, Path: "/system.slice/pay.service/worker"},
		Ancestors: []Ancestor{{ExecID: 6, Executable: Executable{SHA256: Digest{2}}}, {ExecID: 5}, {ExecID: 4, Executable: Executable{SHA256: Digest{3}}}},
		Observed:  true,
	}
}

func TestDerive(t *testing.T) {
	want := set(
		"unix:uid:1000", "unix:gid:100", "unix:user:pay", "unix:supplementary_gid:27", "unix:supplementary_group:sudo",
		"unix:supplementary_gid:4711", "unix:path:/usr/bin/pay", "unix:sha256:"+Digest{1}.String(),
		"parent:sha256:"+Digest{2}.String(), "ancestor:sha256:"+Digest{2}.String(), "ancestor:sha256:"+Digest{3}.String(),
		"cgroup:path:/system.slice/pay.service/worker", "systemd:id:pay.service", "systemd:slice:system.slice",
		"evidence:tier:t2", "evidence:tier:t3", "evidence:observed", "evidence:digest:hashed",
	)
	if got := Derive(facts()); !got.Equal(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Unknown is never a selector.
func TestDeriveFailsClosed(t *testing.T) {
	none := facts()
	none.Tier = TierNone
	unrecorded := facts()
	unrecorded.Process.ExecID = 0
	for _, f := range []*Facts{none, unrecorded, {}} {
		if got := Derive(f); len(got) != 0 {
			t.Errorf("facts without evidence gave %v", got)
		}
	}
	unknown := facts()
	unknown.Executable, unknown.Credentials.User, unknown.Cgroup.Path = Executable{}, "", ""
	unknown.Ancestors[0].Executable.SHA256 = Digest{}
	for _, s := range Derive(unknown) {
		for _, never := range []string{"unix:sha256", "unix:path", "unix:user", "parent:", "cgroup:", "systemd:", "evidence:digest"} {
			if strings.HasPrefix(s.String(), never) {
				t.Errorf("unknown fact gave %v", s)
			}
		}
	}
	seeded := facts()
	seeded.Observed = false
	for _, s := range Derive(seeded) {
		if s.Type == "parent" || s.String() == "evidence:observed" {
			t.Errorf("seeded process gave %v", s)
		}
	}
}

func TestSystemdUnit(t *testing.T) {
	for path, want := range map[string][2]string{
		"/system.slice/a.service":                                   {"a.service", "system.slice"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/x": {"user@1000.service", "user-1000.slice"},
		"/init.scope":                        {"init.scope", ""},
		"/kubepods.slice/pod1.slice":         {"", "pod1.slice"},
		"/docker/abc/fake.service":           {"", ""},
		"/":                                  {"", ""},
		"/system.slice/not-a-unit/b.service": {"", "system.slice"},
	} {
		if u, s := systemdUnit(path); u != want[0] || s != want[1] {
			t.Errorf("%s: got %q %q, want %q", path, u, s, want)
		}
	}
}

func entry(id string, sel ...string) *Entry {
	return &Entry{ID: id, SPIFFEID: spiffeid.RequireFromString("spiffe://td/" + id), Selectors: set(sel...)}
}

func TestIndexMatchesWhatALinearScanFinds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(n int) (out []string) {
		for range n {
			out = append(out, fmt.Sprintf("t:%d", r.IntN(12)))
		}
		return out
	}
	var x Index
	all := map[string]*Entry{}
	for i := range 400 {
		e := entry(fmt.Sprint(r.IntN(150)), pick(r.IntN(4))...)
		x.Put(e)
		all[e.ID] = e
		if i%7 == 0 {
			id := fmt.Sprint(r.IntN(150))
			x.Delete(id)
			delete(all, id)
		}
		have := set(pick(6)...)
		var want []string
		for _, e := range all {
			if s := e.SelectorSet(); len(s) > 0 && s.SubsetOf(have) {
				want = append(want, e.ID)
			}
		}
		var got []string
		for _, e := range x.Match(have) {
			got = append(got, e.ID)
		}
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Fatalf("round %d: got %v, want %v", i, got, want)
		}
	}
	if x.Len() != len(all) {
		t.Errorf("index holds %d entries, want %d", x.Len(), len(all))
	}
}

func TestNearest(t *testing.T) {
	var x Index
	x.Put(entry("far", "a:1", "b:1", "c:1"))
	x.Put(entry("near", "a:1", "b:1"))
	x.Put(entry("match", "a:1"))
	near := x.Nearest(set("a:1"), 2)
	if len(near) != 2 || near[0].Entry.ID != "near" || !near[0].Missing.Equal(set("b:1")) || near[1].Entry.ID != "far" {
		t.Errorf("got %v", near)
	}
}

func BenchmarkMatch(b *testing.B) {
	var x Index
	for i := range 10_000 {
		x.Put(entry(fmt.Sprint(i), "unix:uid:1000", fmt.Sprintf("unix:sha256:%064x", i)))
	}
	have := Derive(facts())
	for b.Loop() {
		x.Match(have)
	}
}
