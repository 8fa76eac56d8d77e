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
	without := facts()
	without.Tier, without.Observed, without.Ancestors = TierT3, false, nil
	want := []string{"evidence:digest:hashed", "evidence:tier:t3"}
	if got := derived(without, "evidence", "parent", "ancestor", "exec", "integrity", "namespace", "code"); !slices.Equal(got, want) {
		t.Errorf("without a sensor: %v, want %v", got, want)
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

// The entry that names the program is meant, though it lacks more than one that names nothing.
func TestNearestIsTheOneMeant(t *testing.T) {
	var x Index
	x.Put(entry("any-root", "unix:uid:0"))
	x.Put(entry("other-uid", "unix:uid:1"))
	x.Put(entry("new-version", "unix:path:/usr/bin/pay", "unix:uid:1000", "unix:sha256:new", "parent:sha256:new"))
	x.Put(entry("other-program", "unix:path:/usr/bin/bill", "unix:uid:1000"))
	x.Put(entry("weaker", "evidence:tier:t1", "unix:uid:1000"))
	var got []string
	for _, n := range x.Nearest(set("unix:path:/usr/bin/pay", "unix:uid:1000", "unix:sha256:old", "evidence:tier:t2"), 9) {
		got = append(got, n.Entry.ID)
	}
	if want := []string{"new-version", "other-program", "weaker", "any-root", "other-uid"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
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

// derived returns what the facts derive to, of some families.
func derived(f *Facts, families ...string) (out []string) {
	for _, s := range Derive(f) {
		if slices.Contains(families, s.Type) {
			out = append(out, s.String())
		}
	}
	return out
}

func TestDeriveExec(t *testing.T) {
	for _, c := range []struct {
		exec Exec
		want []string
	}{
		{Exec{}, nil},
		{Exec{FSMagic: 0xef53}, []string{"exec:binary", "exec:file:regular", "exec:filesystem:ext", "exec:no-set-id"}},
		{Exec{FSMagic: 1, Deleted: true, SetID: true}, []string{"exec:binary", "exec:file:deleted", "exec:set-id"}},
		{Exec{FSMagic: 0x01021994, Deleted: true, MemoryFile: true}, []string{"exec:binary", "exec:file:memory", "exec:filesystem:tmpfs", "exec:no-set-id"}},
		{Exec{FSMagic: 0xef53, Script: true}, []string{"exec:file:regular", "exec:filesystem:ext", "exec:no-set-id", "exec:script"}},
		{Exec{FSMagic: 0xef53, Script: true, ScriptFile: Executable{SHA256: Digest{5}}},
			[]string{"exec:file:regular", "exec:filesystem:ext", "exec:no-set-id", "exec:script", "exec:script:sha256:" + Digest{5}.String()}},
		{Exec{FSMagic: 0xef53, ScriptFile: Executable{SHA256: Digest{5}}}, []string{"exec:binary", "exec:file:regular", "exec:filesystem:ext", "exec:no-set-id"}},
	} {
		f := facts()
		f.Exec = c.exec
		if got := derived(f, "exec"); !slices.Equal(got, c.want) {
			t.Errorf("%+v:\n got %v\nwant %v", c.exec, got, c.want)
		}
		f.Observed = false
		for _, never := range []string{"exec:binary", "exec:no-set-id"} {
			if slices.Contains(derived(f, "exec"), never) {
				t.Errorf("an execve that nobody saw gave %s", never)
			}
		}
	}
}

func TestDeriveProcess(t *testing.T) {
	f := facts()
	if got := derived(f, "process", "namespace"); got != nil {
		t.Errorf("unknown rights gave %v", got)
	}
	f.Credentials.Known, f.Credentials.LoginUID, f.Credentials.SessionID = true, Unset, Unset
	f.Namespaces = Namespaces{Known: true, HostPID: true}
	want := []string{"namespace:cgroup:own", "namespace:ipc:own", "namespace:mount:own", "namespace:net:own", "namespace:pid:host", "namespace:user:own",
		"process:no-capabilities", "process:seccomp:disabled"}
	if got := derived(f, "process", "namespace"); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	f.Credentials.Effective, f.Credentials.Seccomp, f.Credentials.NoNewPrivs = 1<<12|1<<40|1<<63, 2, true
	f.Credentials.LoginUID, f.Credentials.SessionID, f.Credentials.SecurityLabel = 1000, 7, "docker-default (enforce)"
	want = []string{"process:capability:cap_63", "process:capability:cap_checkpoint_restore", "process:capability:cap_net_admin",
		"process:login-uid:1000", "process:no-new-privs", "process:seccomp:filter", "process:security-label:docker-default (enforce)", "process:session:7"}
	if got := derived(f, "process"); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestDeriveIntegrity(t *testing.T) {
	for _, c := range []struct {
		integrity Integrity
		want      []string
	}{
		{Integrity{}, nil},
		{Integrity{SeesAll: true, SeesTracing: true, SeesWrites: true}, []string{"integrity:clean", "integrity:memory-unwritten", "integrity:unmodified"}},
		{Integrity{SeesWrites: true}, []string{"integrity:memory-unwritten"}},
		{Integrity{SeesTracing: true}, nil},
		{Integrity{Traced: true}, []string{"integrity:traced"}},
		{Integrity{SeesWrites: true, Traced: true}, []string{"integrity:memory-unwritten", "integrity:traced"}},
		{Integrity{SeesAll: true, SeesTracing: true, SeesWrites: true, MemoryRead: true}, []string{"integrity:memory-read", "integrity:memory-unwritten", "integrity:unmodified"}},
		{Integrity{SeesAll: true, SeesTracing: true, SeesWrites: true, MemoryWritten: true, DescriptorTaken: true}, []string{"integrity:descriptor-taken", "integrity:memory-written"}},
	} {
		f := facts()
		f.Integrity = c.integrity
		if got := derived(f, "integrity"); !slices.Equal(got, c.want) {
			t.Errorf("%+v: got %v", c.integrity, got)
		}
	}
	f := facts()
	f.Code = Code{Libraries: Digest{1}, Files: 2}
	if got := derived(f, "code"); got != nil {
		t.Errorf("unknown code gave %v", got)
	}
	f.Code.Known = true
	if got, want := derived(f, "code"), []string{"code:libraries:count:2", "code:libraries:sha256:" + Digest{1}.String(), "code:no-anonymous-exec"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	f.Code.Anonymous = true
	if got := derived(f, "code"); slices.Contains(got, "code:no-anonymous-exec") {
		t.Errorf("got %v", got)
	}
}

func TestDeriveHint(t *testing.T) {
	f := facts()
	if got := derived(f, "hint"); got != nil {
		t.Errorf("no argument gave %v", got)
	}
	f.ArgumentFile = Executable{Path: "app.py", SHA256: Digest{9}}
	if got, want := derived(f, "hint"), []string{"hint:argument-file:sha256:" + Digest{9}.String()}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestDeriveWhoComputedTheDigest(t *testing.T) {
	f := facts()
	f.Executable.IMA, f.Executable.FSVerity = true, Digest{3}
	for _, want := range []string{"digest:hashed", "digest:ima", "digest:fsverity"} {
		if !Derive(f).Contains(Selector{"evidence", want}) {
			t.Errorf("%s is missing", want)
		}
	}
}

func BenchmarkDerive(b *testing.B) {
	f := facts()
	f.Credentials.Known, f.Credentials.Effective, f.Namespaces.Known, f.Exec.FSMagic = true, 1<<41-1, true, 0xef53
	for b.Loop() {
		Derive(f)
	}
}
