// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// wantErr checks the one result.
func wantErr[T any](t *testing.T, what string, results []federation.Result[T], want error) {
	t.Helper()
	if len(results) != 1 || !errors.Is(results[0].Err, want) {
		t.Errorf("%s: %+v, want %v", what, results, want)
	}
}

func TestBundles(t *testing.T) {
	s := storetest.Open(t)
	e, second := openOver(t, s, here, nil), openOver(t, s, here, nil)
	b := newBundle(t, there, newAuthority(t, there.IDString()))
	b.JWT[0].ExpiresAt = time.Now().Add(time.Hour).Truncate(time.Second)
	b.RefreshHint = time.Hour

	update := func(change func(*federation.Bundle)) []federation.Result[*federation.Bundle] {
		return e.UpdateBundles(t.Context(), []federation.BundleUpdate{{TrustDomain: there, Change: func(b *federation.Bundle) error { change(b); return nil }}})
	}
	wantErr(t, "update before create", update(func(*federation.Bundle) {}), federation.ErrNotFound)
	wantErr(t, "delete before create", e.DeleteBundles(t.Context(), []spiffeid.TrustDomain{there}, federation.Restrict), federation.ErrNotFound)
	changed := second.Changed()
	one(t, e.CreateBundles(t.Context(), []*federation.Bundle{b}))
	if got := e.Bundle(there); got == nil || !got.Equal(b) || got.Sequence != 7 || got.RefreshHint != time.Hour {
		t.Fatalf("the bundle is %+v, want %+v", got, b)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("the other server was not told")
	}
	waitFor(t, "the bundle on the other server", func() bool { got := second.Bundle(there); return got != nil && got.Equal(b) })
	wantErr(t, "create again, elsewhere", second.CreateBundles(t.Context(), []*federation.Bundle{b}), federation.ErrExists)

	one(t, update(func(b *federation.Bundle) { b.Sequence = 3 }))
	if got := e.Bundle(there); got.Sequence != 3 || !got.Equal(b) {
		t.Errorf("after an update of the sequence it is %+v", got)
	}
	one(t, update(func(b *federation.Bundle) { b.X509, b.TrustDomain = nil, here }))
	if got := e.Bundle(there); len(got.X509) != 0 || len(got.JWT) != 1 {
		t.Errorf("after the X.509 authorities were taken out it is %+v", got)
	}
	boom := errors.New("boom")
	wantErr(t, "a change that fails", e.UpdateBundles(t.Context(), []federation.BundleUpdate{{TrustDomain: there, Change: func(*federation.Bundle) error { return boom }}}), boom)
	one(t, e.SetBundles(t.Context(), []*federation.Bundle{b}))

	own := newBundle(t, here, newAuthority(t, here.IDString()))
	wantErr(t, "create our own", e.CreateBundles(t.Context(), []*federation.Bundle{own}), federation.ErrOwn)
	wantErr(t, "set our own", e.SetBundles(t.Context(), []*federation.Bundle{own}), federation.ErrOwn)
	wantErr(t, "delete our own", e.DeleteBundles(t.Context(), []spiffeid.TrustDomain{here}, federation.Delete), federation.ErrOwn)
	wantErr(t, "update our own", e.UpdateBundles(t.Context(), []federation.BundleUpdate{{TrustDomain: here}}), federation.ErrOwn)
	wantErr(t, "an authority of another", e.SetBundles(t.Context(), []*federation.Bundle{newBundle(t, there, newAuthority(t, here.IDString()))}), federation.ErrInvalid)
	mixed := e.SetBundles(t.Context(), []*federation.Bundle{own, b, {TrustDomain: there, JWT: []federation.Authority{{ID: ""}}}})
	if len(mixed) != 3 || mixed[0].Err == nil || mixed[1].Err != nil || mixed[2].Err == nil {
		t.Errorf("each on its own merits: %+v", mixed)
	}
	if n := e.CountBundles(); n != 1 {
		t.Errorf("%d bundles", n)
	}
}

func TestDeleteModes(t *testing.T) {
	e := open(t, here, nil)
	other := spiffeid.RequireTrustDomainFromString("other.test")
	for _, td := range []spiffeid.TrustDomain{there, other} {
		one(t, e.CreateBundles(t.Context(), []*federation.Bundle{newBundle(t, td, newAuthority(t, td.IDString()))}))
	}
	both, single, none := e.entry(t, "/both", "there.test", "other.test"), e.entry(t, "/single", "there.test"), e.entry(t, "/none")
	del := func(td spiffeid.TrustDomain, mode federation.DeleteMode) []federation.Result[*federation.Bundle] {
		return e.DeleteBundles(t.Context(), []spiffeid.TrustDomain{td}, mode)
	}
	wantErr(t, "restrict", del(there, federation.Restrict), federation.ErrFederated)
	if !e.HasBundle(there) {
		t.Error("a refused deletion deleted")
	}
	one(t, del(there, federation.Dissociate))
	for _, was := range []string{both.ID, single.ID} {
		got := e.entries.Get(was)
		if slices.Contains(got.FederatesWith, "there.test") || got.Revision != 1 || !got.CreatedAt.Equal(both.CreatedAt) {
			t.Errorf("after dissociation: %+v", got)
		}
	}
	if got := e.entries.Get(none.ID); got.Revision != 0 {
		t.Errorf("an entry that had nothing to do with it: %+v", got)
	}
	if e.HasBundle(there) || e.entries.FederatedWith(there) != 0 || e.entries.FederatedWith(other) != 1 {
		t.Error("dissociation left something")
	}
	one(t, del(other, federation.Delete))
	if e.entries.Get(both.ID) != nil || e.entries.Get(single.ID) == nil {
		t.Error("the entries with it are deleted, and no others")
	}
}

func TestRelationships(t *testing.T) {
	e := open(t, here, nil)
	good := federation.Relationship{TrustDomain: there, URL: "https://there.test/bundle", Profile: federation.Web}
	create := func(change func(*federation.Relationship)) []federation.Result[federation.Relationship] {
		rel := good
		change(&rel)
		return e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: rel}})
	}
	for id, change := range map[string]func(*federation.Relationship){
		"F-10 scheme":   func(r *federation.Relationship) { r.URL = "http://there.test" },
		"F-10 userinfo": func(r *federation.Relationship) { r.URL = "https://me:secret@there.test" },
		"no host":       func(r *federation.Relationship) { r.URL = "https:///bundle" },
		"no URL":        func(r *federation.Relationship) { r.URL = "" },
		"bad URL":       func(r *federation.Relationship) { r.URL = "https://\x00" },
		"F-8 profile":   func(r *federation.Relationship) { r.Profile = "" },
		"F-18":          func(r *federation.Relationship) { r.Profile = federation.SPIFFE },
		"F-11":          func(r *federation.Relationship) { r.EndpointID = spiffeid.RequireFromPath(there, "/x") },
		"F-8 domain":    func(r *federation.Relationship) { r.TrustDomain = spiffeid.TrustDomain{} },
	} {
		res := create(change)
		wantErr(t, id, res, federation.ErrInvalid)
		if strings.Contains(res[0].Err.Error(), "secret") {
			t.Errorf("the sentence repeats a password: %v", res[0].Err)
		}
	}
	wantErr(t, "our own", create(func(r *federation.Relationship) { r.TrustDomain = here }), federation.ErrOwn)
	b := newBundle(t, there, newAuthority(t, there.IDString()))
	wrong := *b
	wrong.TrustDomain = spiffeid.RequireTrustDomainFromString("other.test")
	wantErr(t, "another's bundle", e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: good, Bundle: &wrong}}), federation.ErrInvalid)
	one(t, e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: good, Bundle: b}}))
	if got, ok := e.Relationship(there); !ok || got != good || !e.Bundle(there).Equal(b) {
		t.Errorf("stored %+v with %+v", got, e.Bundle(there))
	}
	wantErr(t, "again", create(func(*federation.Relationship) {}), federation.ErrExists)

	update := func(td spiffeid.TrustDomain, change func(*federation.Relationship)) []federation.Result[federation.Relationship] {
		return e.UpdateRelationships(t.Context(), []federation.RelationshipUpdate{{TrustDomain: td, Change: func(r *federation.Relationship) error { change(r); return nil }}})
	}
	wantErr(t, "update of none", update(here, func(*federation.Relationship) {}), federation.ErrNotFound)
	id := spiffeid.RequireFromPath(there, "/spire/server")
	got := one(t, update(there, func(r *federation.Relationship) { r.Profile, r.EndpointID = federation.SPIFFE, id }))
	if want := (federation.Relationship{TrustDomain: there, URL: good.URL, Profile: federation.SPIFFE, EndpointID: id}); got != want {
		t.Errorf("updated to %+v, want %+v", got, want)
	}
	wantErr(t, "update to nonsense", update(there, func(r *federation.Relationship) { r.URL = "x" }), federation.ErrInvalid)

	if old := one(t, e.DeleteRelationships(t.Context(), []spiffeid.TrustDomain{there})); old != got {
		t.Errorf("deleted %+v", old)
	}
	wantErr(t, "delete again", e.DeleteRelationships(t.Context(), []spiffeid.TrustDomain{there}), federation.ErrNotFound)
	if !e.HasBundle(there) {
		t.Error("the bundle went with the relationship")
	}
	if err := e.RefreshBundle(t.Context(), there); !errors.Is(err, federation.ErrNotFound) {
		t.Errorf("refresh without relationship: %v", err)
	}
}

func TestPages(t *testing.T) {
	e := open(t, here, nil)
	var want []string
	for _, name := range []string{"c.test", "a.test", "e.test", "b.test", "d.test"} {
		td := spiffeid.RequireTrustDomainFromString(name)
		one(t, e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: federation.Relationship{TrustDomain: td, URL: "https://x", Profile: federation.Web}}}))
		want = append(want, name)
	}
	slices.Sort(want)
	for _, size := range []int{0, 1, 2, 5, 1 << 31} {
		var got []string
		token := ""
		for {
			page, next, err := e.ListRelationships(size, token)
			if err != nil || size > 0 && len(page) > size {
				t.Fatal(page, err)
			}
			for _, r := range page {
				got = append(got, r.TrustDomain.Name())
			}
			if token = next; token == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v", size, got)
		}
	}
	if _, _, err := e.ListBundles(1, "No Domain"); !errors.Is(err, federation.ErrToken) {
		t.Errorf("a wrong token: %v", err)
	}
}

// TestUnreadable: what a later version or a broken disk left neither takes the rest down nor stays
// for ever.
func TestUnreadable(t *testing.T) {
	s := storetest.Open(t)
	for _, kv := range []store.KV{{Key: "f/bundle/there.test", Value: []byte("{")}, {Key: "f/bundle/No Domain", Value: []byte("{}")}, {Key: "f/later/x", Value: nil}} {
		if _, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{kv}}); err != nil {
			t.Fatal(err)
		}
	}
	e := openOver(t, s, here, nil)
	if e.HasBundle(there) || e.CountBundles() != 0 || !strings.Contains(e.logs.String(), "f/bundle/there.test") {
		t.Errorf("%d bundles; the log says %s", e.CountBundles(), e.logs)
	}
	one(t, e.SetBundles(t.Context(), []*federation.Bundle{newBundle(t, there, newAuthority(t, there.IDString()))}))
	if !e.HasBundle(there) {
		t.Error("it can not be replaced")
	}
}

// TestManyWriters: servers that write at once lose nothing.
func TestManyWriters(t *testing.T) {
	s := storetest.Open(t)
	b := newBundle(t, there, newAuthority(t, there.IDString()))
	b.Sequence = 0
	servers := []*env{openOver(t, s, here, nil), openOver(t, s, here, nil), openOver(t, s, here, nil)}
	one(t, servers[0].SetBundles(t.Context(), []*federation.Bundle{b}))
	for _, e := range servers[1:] {
		waitFor(t, "the bundle", func() bool { return e.HasBundle(there) })
	}
	const each = 5
	errs := make(chan error)
	for _, e := range servers {
		go func() {
			var err error
			for range each {
				err = errors.Join(err, e.UpdateBundles(context.Background(), []federation.BundleUpdate{{TrustDomain: there, Change: func(b *federation.Bundle) error { b.Sequence++; return nil }}})[0].Err)
			}
			errs <- err
		}()
	}
	for range servers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, e := range servers {
		waitFor(t, "all updates", func() bool { return e.Bundle(there).Sequence == each*uint64(len(servers)) })
	}
}
