// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

var td = spiffeid.RequireTrustDomainFromString("example.org")

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

func entry(parent, path string, sels ...string) *selectors.Entry {
	e := &selectors.Entry{ParentID: id(parent), SPIFFEID: id(path)}
	for _, s := range sels {
		sel, err := selectors.Parse(s)
		if err != nil {
			panic(err)
		}
		e.Selectors = append(e.Selectors, sel)
	}
	return e
}

// foreign are the types of selectors that these tests make up.
var foreign = []string{"a", "b", "s", "x"}

func open(t *testing.T, s entries.Store) *entries.Registry {
	t.Helper()
	r, err := entries.Open(t.Context(), entries.Config{Store: s, TrustDomain: td, ForeignSelectors: foreign, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func create(t *testing.T, r *entries.Registry, es ...*selectors.Entry) []*selectors.Entry {
	t.Helper()
	var out []*selectors.Entry
	for _, res := range r.Create(t.Context(), es) {
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		out = append(out, res.Entry)
	}
	return out
}

func TestCreateRules(t *testing.T) {
	r := open(t, storetest.Open(t))
	first := create(t, r, entry("/agent", "/w", "a:1", "b:2"))[0]
	if first.ID == "" || first.Revision != 0 || first.CreatedAt.IsZero() || first.CreatedAt.Nanosecond() != 0 {
		t.Errorf("created %+v", first)
	}
	if got := r.Get(first.ID); got == nil || got.SPIFFEID != first.SPIFFEID {
		t.Errorf("the writer does not read its write: %v", got)
	}
	custom := entry("/agent", "/custom", "a:1")
	custom.ID = "mine"
	create(t, r, custom)

	with := func(e *selectors.Entry, change func(*selectors.Entry)) *selectors.Entry { change(e); return e }
	tests := []struct {
		name string
		in   *selectors.Entry
		want error  // or
		text string // of an InvalidError
	}{
		{"similar in another order, repeated", entry("/agent", "/w", "b:2", "a:1", "a:1"), entries.ErrSimilar, ""},
		{"id taken", with(entry("/agent", "/other", "a:1"), func(e *selectors.Entry) { e.ID = "mine" }), entries.ErrDuplicate, ""},
		{"selector twice", entry("/agent", "/x", "a:1", "a:1"), entries.ErrDuplicate, ""},
		{"DNS name twice", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.DNSNames = []string{"x", "x"} }), entries.ErrDuplicate, ""},
		{"unknown bundle", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.FederatesWith = []string{"other.org"} }), entries.ErrNoBundle, ""},
		{"selector of no type", entry("/agent", "/x", "unx:uid:1"), nil, `did you mean "unix"?; if an attestor of yours has it, add it to foreign_selectors`},
		{"selector of no key", entry("/agent", "/x", "a:1", "unix:sha265:00"), nil, `did you mean "unix:sha256:<digest>"?`},
		{"digest cut short", entry("/agent", "/x", "unix:sha256:00"), nil, "64 lower-case hexadecimal digits"},
		{"reserved", entry("/agent", "/spire/x", "a:1"), nil, "invalid spiffe ID"},
		{"no selector", entry("/agent", "/x"), nil, "selector list is empty"},
		{"only hints", entry("/agent", "/x", "hint:argument-file:sha256:"+strings.Repeat("1", 64), "hint:argument-file:sha256:"+strings.Repeat("2", 64)), nil, "add what the kernel proves"},
		{"DNS", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.DNSNames = []string{"a.*.b"} }), nil, "invalid DNS name"},
		{"DNS dot", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.DNSNames = []string{"a.b."} }), nil, "invalid DNS name"},
		{"id", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.ID = "a/b" }), nil, "entry ID contains"},
		{"ttl", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.X509SVIDTTL = -1 }), nil, "X509SvidTtl"},
		{"hint", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.Hint = strings.Repeat("h", 1025) }), nil, "invalid hint"},
		{"foreign parent", with(entry("/agent", "/x", "a:1"), func(e *selectors.Entry) { e.ParentID = spiffeid.RequireFromString("spiffe://o/a") }), nil, "invalid parent ID"},
	}
	for _, test := range tests {
		res := r.Create(t.Context(), []*selectors.Entry{test.in})[0]
		var inv *entries.InvalidError
		switch {
		case test.want != nil && !errors.Is(res.Err, test.want),
			test.text != "" && (!errors.As(res.Err, &inv) || !strings.Contains(inv.Reason, test.text)):
			t.Errorf("%s: %v, want %v%s", test.name, res.Err, test.want, test.text)
		case test.want == entries.ErrSimilar && (res.Entry == nil || res.Entry.ID != first.ID):
			t.Errorf("%s: entry %v, want the first", test.name, res.Entry)
		}
	}
	if n := r.Count(entries.Filter{}); n != 2 {
		t.Errorf("%d entries after refusals, want 2", n)
	}
	// A hint beside evidence is welcome.
	if res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", "/hinted", "hint:argument-file:sha256:"+strings.Repeat("1", 64), "unix:uid:1")})[0]; res.Err != nil {
		t.Error(res.Err)
	}
	// A wildcard and similar entries in one batch.
	create(t, r, entry("/spire-controller-manager/unsupported-fields-test", "/spire-controller-manager/unsupported-fields-test", "nobody:1"))
	wild := with(entry("/agent", "/wild", "a:1"), func(e *selectors.Entry) { e.DNSNames = []string{"*.example.org"} })
	res := r.Create(t.Context(), []*selectors.Entry{wild, wild})
	if res[0].Err != nil || !errors.Is(res[1].Err, entries.ErrSimilar) || res[1].Entry.ID != res[0].Entry.ID {
		t.Errorf("twins in one batch: %+v", res)
	}
}

func TestUpdateDeleteReopen(t *testing.T) {
	s := storetest.Open(t)
	r := open(t, s)
	e := create(t, r, entry("/agent", "/w", "a:1"))[0]
	custom := entry("/agent", "/c", "a:1")
	custom.ID = "mine"
	create(t, r, custom)
	for want := int64(1); want < 3; want++ {
		res := r.Update(t.Context(), []entries.Update{{ID: e.ID, Change: func(e *selectors.Entry) error { e.ParentID = id("/moved"); e.ID = "no"; return nil }}})[0]
		if res.Err != nil || res.Entry.Revision != want || res.Entry.ID != e.ID || res.Entry.CreatedAt != e.CreatedAt {
			t.Fatalf("Update = %+v, %v, want revision %d", res.Entry, res.Err, want)
		}
	}
	if again := open(t, s); again.Get(e.ID) == nil || again.Get(e.ID).ParentID != id("/moved") || again.Get("mine") == nil {
		t.Errorf("another server reads %+v", again.Get(e.ID))
	}
	results := r.Delete(t.Context(), []string{e.ID, "none", "mine", "mine"})
	for i, want := range []error{nil, entries.ErrNotFound, nil, entries.ErrNotFound} {
		if !errors.Is(results[i].Err, want) {
			t.Errorf("Delete %d = %v, want %v", i, results[i].Err, want)
		}
	}
	custom.ID = "mine" // free again
	create(t, r, custom)
	res := r.Update(t.Context(), []entries.Update{{ID: "none", Change: func(*selectors.Entry) error { return nil }}})[0]
	if !errors.Is(res.Err, entries.ErrNotFound) {
		t.Errorf("Update of nothing = %v", res.Err)
	}
}

// TestTwoServers: the guard keeps (parent, SPIFFE ID, selectors) unique between servers.
func TestTwoServers(t *testing.T) {
	s := storetest.Open(t)
	servers := []*entries.Registry{open(t, s), open(t, s), open(t, s)}
	const n = 40
	var mu sync.Mutex
	made := map[spiffeid.ID][]string{}
	var wg sync.WaitGroup
	for _, r := range servers {
		wg.Go(func() {
			for i := range n {
				res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", fmt.Sprintf("/w%d", i), "a:1")})[0]
				if res.Err != nil && !errors.Is(res.Err, entries.ErrSimilar) {
					t.Errorf("create: %v", res.Err)
					return
				}
				mu.Lock()
				made[res.Entry.SPIFFEID] = append(made[res.Entry.SPIFFEID], res.Entry.ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for spiffeID, ids := range made {
		if len(ids) != len(servers) || len(slices.Compact(ids)) != 1 {
			t.Errorf("%s has ids %v: want all servers to agree on one", spiffeID, ids)
		}
	}
	if kvs, _, _ := s.Snapshot(t.Context(), "e/"); len(kvs) != n+1 { // and e/writer
		t.Errorf("%d entries stored, want %d", len(kvs), n)
	}
}

func TestList(t *testing.T) {
	r := open(t, storetest.Open(t))
	all := create(t, r, entry("/agent", "/1", "s:a", "s:b"), entry("/agent", "/2", "s:a"), entry("/agent", "/3", "s:a", "s:b", "s:c"))
	want := func(m entries.Match, names ...string) {
		t.Helper()
		f := entries.Filter{Selectors: entry("/x", "/x", "s:a", "s:b").SelectorSet(), SelectorMatch: m}
		list, _, err := r.List(f, 0, "")
		var got []string
		for _, e := range list {
			got = append(got, e.SPIFFEID.Path())
		}
		if err != nil || !slices.Equal(got, names) || r.Count(f) != len(names) {
			t.Errorf("match %d = %v (%v), want %v", m, got, err, names)
		}
	}
	want(entries.Exact, "/1")
	want(entries.Subset, "/1", "/2")
	want(entries.Superset, "/1", "/3")
	want(entries.Any, "/1", "/2", "/3")

	var got []string
	token, pages := "", 0
	for {
		list, next, err := r.List(entries.Filter{}, 2, token)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, e := range list {
			got = append(got, e.ID)
		}
		if next == "" {
			break
		}
		token = next
	}
	if pages != 3 || !slices.Equal(got, []string{all[0].ID, all[1].ID, all[2].ID}) {
		t.Errorf("%d pages: %v; want creation order and an empty last page", pages, got)
	}
	if _, _, err := r.List(entries.Filter{}, 2, "x"); !errors.Is(err, entries.ErrToken) {
		t.Errorf("bad token: %v", err)
	}
}

func paths(es []*selectors.Entry) (out []string) {
	for _, e := range es {
		out = append(out, e.SPIFFEID.Path())
	}
	slices.Sort(out)
	return out
}

func TestAuthorized(t *testing.T) {
	r := open(t, storetest.Open(t))
	create(t, r,
		entry("/agent/1", "/a", "s:1"),
		entry("/a", "/b", "s:1"), // nested
		entry("/b", "/a", "s:2"), // a cycle
		entry("/spire/server", "/group", "x:1", "x:2"),
		entry("/spire/server", "/other", "x:3"),
		entry("/group", "/g", "s:1"),
		entry("/other", "/o", "s:1"),
		entry("/agent/2", "/z", "s:1"),
	)
	node := entry("/x", "/x", "x:1", "x:2", "x:9").SelectorSet()
	if got := paths(r.Authorized(id("/agent/1"), node)); !slices.Equal(got, []string{"/a", "/a", "/b", "/g"}) {
		t.Errorf("with alias: %v", got)
	}
	if got := paths(r.Authorized(id("/agent/1"), nil)); !slices.Equal(got, []string{"/a", "/a", "/b"}) {
		t.Errorf("without node selectors: %v", got)
	}
}

// TestAuthorizedBothWays: walking down from the agent and up from the entry agree.
func TestAuthorizedBothWays(t *testing.T) {
	r := open(t, storetest.Open(t))
	rng := rand.New(rand.NewPCG(1, 2))
	places := []string{"/agent", "/spire/server", "/a", "/b", "/c", "/d", "/e", "/f"}
	var es []*selectors.Entry
	for i := range 60 {
		es = append(es, entry(places[rng.IntN(len(places))], places[2+rng.IntN(6)], fmt.Sprintf("s:%d", rng.IntN(3)), fmt.Sprintf("u:%d", i)))
		es[i].Selectors = es[i].Selectors[:1+rng.IntN(2)]
	}
	all := r.Create(t.Context(), es)
	for _, node := range []selectors.Set{nil, entry("/x", "/x", "s:0").SelectorSet(), entry("/x", "/x", "s:0", "s:1", "s:2").SelectorSet()} {
		allowed := map[string]bool{}
		for _, e := range r.Authorized(id("/agent"), node) {
			allowed[e.ID] = true
		}
		if len(allowed) == 0 {
			t.Fatal("nothing is authorised: the test tests nothing")
		}
		for _, res := range all {
			if res.Entry != nil && (r.AuthorizedEntry(id("/agent"), node, res.Entry.ID) != nil) != allowed[res.Entry.ID] {
				t.Errorf("%s under %s with node %v: allowed %t downwards", res.Entry.SPIFFEID, res.Entry.ParentID, node, allowed[res.Entry.ID])
			}
		}
	}
	if r.AuthorizedEntry(id("/agent"), nil, "none") != nil {
		t.Error("an unknown entry is authorised")
	}
}

func TestFeed(t *testing.T) {
	s := storetest.Open(t)
	r := open(t, s)
	other := open(t, s) // changes come from another server, too
	base := create(t, r, entry("/agent", "/a", "s:1"))[0]
	var mu sync.Mutex
	var node selectors.Set
	feed := r.Subscribe(id("/agent"), func() selectors.Set { mu.Lock(); defer mu.Unlock(); return node })
	defer feed.Close()
	next := func() entries.Delta {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		d, err := feed.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	quiet := func(why string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if d, err := feed.Next(ctx); err == nil {
			t.Errorf("%s: got %+v", why, d)
		}
	}
	if d := next(); !d.Full || !slices.Equal(paths(d.Put), []string{"/a"}) {
		t.Fatalf("first: %+v", d)
	}
	create(t, other, entry("/elsewhere", "/x", "s:1"))
	quiet("a change of another parent")

	create(t, other, entry("/a", "/nested", "s:1"))
	if d := next(); d.Full || !slices.Equal(paths(d.Put), []string{"/nested"}) || len(d.Removed) != 0 {
		t.Errorf("nested: %+v", d)
	}
	grand := create(t, other, entry("/nested", "/grand", "s:1"))[0]
	if d := next(); !slices.Equal(paths(d.Put), []string{"/grand"}) {
		t.Errorf("below a parent that came later: %+v", d)
	}
	create(t, r, entry("/spire/server", "/group", "x:1"), entry("/group", "/g", "s:1"))
	quiet("an alias that does not apply")
	mu.Lock()
	node = entry("/x", "/x", "x:1").SelectorSet()
	mu.Unlock()
	r.NodeChanged(id("/agent"))
	if d := next(); !slices.Equal(paths(d.Put), []string{"/g"}) {
		t.Errorf("alias: %+v", d)
	}
	if res := other.Delete(t.Context(), []string{base.ID}); res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	if d := next(); len(d.Put) != 0 || len(d.Removed) != 3 || !slices.Contains(d.Removed, grand.ID) || d.Revision == 0 {
		t.Errorf("a removed branch: %+v", d)
	}
}

// TestFeedAfterMoves: in one batch two entries move, each the only one below its parent, so that what
// the replica knew of the first parent is gone when it comes to know that of the second move.
func TestFeedAfterMoves(t *testing.T) {
	r := open(t, storetest.Open(t))
	made := create(t, r, entry("/agent/0", "/x", "s:1"), entry("/agent/2", "/y", "s:1"))
	var feeds []*entries.Feed
	for _, agent := range []string{"/agent/1", "/agent/3"} {
		f := r.Subscribe(id(agent), func() selectors.Set { return nil })
		defer f.Close()
		if d, err := f.Next(t.Context()); err != nil || !d.Full {
			t.Fatalf("%+v, %v", d, err)
		}
		feeds = append(feeds, f)
	}
	move := func(e *selectors.Entry, to string) entries.Update {
		return entries.Update{ID: e.ID, Change: func(e *selectors.Entry) error { e.ParentID = id(to); return nil }}
	}
	for _, res := range r.Update(t.Context(), []entries.Update{move(made[0], "/agent/1"), move(made[1], "/agent/3")}) {
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	for i, f := range feeds {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if d, err := f.Next(ctx); err != nil || len(d.Put) != 1 {
			t.Errorf("feed %d: %+v, %v", i, d, err)
		}
	}
}

// faulty makes the store lose the watch, as after a compaction.
type faulty struct {
	*store.Store
	broke chan struct{}
	once  sync.Once
}

func (f *faulty) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	first := false
	f.once.Do(func() { first = true })
	if !first {
		return f.Store.Watch(ctx, prefix, after)
	}
	out := make(chan store.Batch, 1)
	go func() {
		<-f.broke
		out <- store.Batch{Err: store.ErrCompacted}
		close(out)
	}()
	return out
}

func TestRebuildAfterCompaction(t *testing.T) {
	s := storetest.Open(t)
	writer := open(t, s)
	old := create(t, writer, entry("/agent", "/old", "s:1"))[0]
	f := &faulty{Store: s, broke: make(chan struct{})}
	r := open(t, f)
	feed := r.Subscribe(id("/agent"), func() selectors.Set { return nil })
	defer feed.Close()
	if d, err := feed.Next(t.Context()); err != nil || !d.Full {
		t.Fatal(d, err)
	}
	create(t, writer, entry("/agent", "/missed", "s:1"))
	close(f.broke)
	d, err := feed.Next(t.Context())
	if err != nil || d.Full || !slices.Equal(paths(d.Put), []string{"/missed"}) || len(d.Removed) != 0 {
		t.Errorf("after the rebuild: %+v, %v; want only what was missed", d, err)
	}
	if r.Get(old.ID) == nil {
		t.Error("the rebuild lost an entry")
	}
}

func TestPrune(t *testing.T) {
	r := open(t, storetest.Open(t))
	e := entry("/agent", "/w", "a:1")
	e.ExpiresAt = time.Now().Add(-time.Second)
	create(t, r, e, entry("/agent", "/stays", "a:1"))
	if n, err := r.Prune(t.Context()); n != 1 || err != nil || r.Count(entries.Filter{}) != 1 {
		t.Errorf("Prune = %d, %v; %d left", n, err, r.Count(entries.Filter{}))
	}
}
