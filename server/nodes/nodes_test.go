// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm/verify"
)

func TestMain(m *testing.M) {
	os.Exit(storetest.Main(m))
}

var td = spiffeid.RequireTrustDomainFromString("example.org")

// clock is a time that tests move.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Add(1)).UTC() }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func open(t *testing.T, s Store, c *clock) *Registry {
	t.Helper()
	r, err := Open(t.Context(), Config{Store: s, Logger: quiet(t), Now: c.now})
	must(t, err)
	t.Cleanup(r.Close)
	return r
}

func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func denied(t *testing.T, err error, want Reason) {
	t.Helper()
	var d *DeniedError
	if !errors.As(err, &d) || d.Reason != want {
		t.Fatalf("want reason %d, got %v", want, err)
	}
}

func agent(name string) spiffeid.ID { return spiffeid.RequireFromPath(td, "/spire/agent/test/"+name) }

func attest(t *testing.T, r *Registry, name, serial string, notAfter time.Time) spiffeid.ID {
	t.Helper()
	_, err := r.Attested(t.Context(), Attestation{ID: agent(name), Type: "test", Selectors: selectors.NewSet(selectors.Selector{Type: "a", Value: name})}, serial, notAfter)
	must(t, err)
	return agent(name)
}

func TestLife(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	here, there := open(t, s, c), open(t, s, c) // two servers
	ctx := t.Context()
	end := c.now().Add(time.Hour)

	id := agent("one")
	denied(t, here.Authorize(ctx, id, "1", end), NotAttested)
	attest(t, here, "one", "1", end)
	// The other server may not know yet from its memory, but says the truth.
	must(t, there.Authorize(ctx, id, "1", end))
	denied(t, here.Authorize(ctx, id, "2", end), NotActive)
	denied(t, here.Authorize(ctx, id, "", end), NotActive)
	if n := here.Get(id); n.AttestationType != "test" || n.Serial != "1" || len(n.Selectors) != 1 || !n.NotAfter.Equal(end) {
		t.Fatalf("read your writes: %+v", n)
	}

	// Renewal: both serials count until the new one is used.
	must(t, here.Renewed(ctx, id, "2", end))
	must(t, here.Authorize(ctx, id, "1", end))
	must(t, here.Renewed(ctx, id, "3", end)) // the reply was lost; renewed again
	must(t, here.Authorize(ctx, id, "1", end))
	denied(t, here.Authorize(ctx, id, "2", end), NotActive)
	must(t, there.Authorize(ctx, id, "3", end))
	denied(t, there.Authorize(ctx, id, "1", end), NotActive)
	eventually(t, func() bool { n := here.Get(id); return n.Serial == "3" && n.NewSerial == "" })
	denied(t, here.Authorize(ctx, id, "1", end), NotActive)

	// Attesting again ends the old SVID and a pending one at once, and keeps type and version.
	must(t, here.SetVersion(ctx, id, "1.2"))
	must(t, here.Renewed(ctx, id, "4", end))
	_, err := here.Attested(ctx, Attestation{ID: id, Type: "other", CanReattest: true}, "5", end)
	must(t, err)
	denied(t, here.Authorize(ctx, id, "3", end), NotActive)
	denied(t, here.Authorize(ctx, id, "4", end), NotActive)
	must(t, here.Authorize(ctx, id, "5", end))
	if n := here.Get(id); n.AttestationType != "test" || n.AgentVersion != "1.2" || !n.CanReattest || n.Selectors != nil {
		t.Fatalf("%+v", n)
	}
	denied(t, here.Renewed(ctx, id, "6", end), MustReattest)
	denied(t, here.Renewable(ctx, id), MustReattest)

	// The SVID's own end.
	c.advance(2 * time.Hour)
	denied(t, here.Authorize(ctx, id, "5", end), Expired)
	end = c.now().Add(time.Hour)

	// Banned: no serial counts, no way back but Delete.
	must(t, here.Ban(ctx, id, "gone bad", "operator root"))
	denied(t, here.Authorize(ctx, id, "5", end), Banned)
	denied(t, there.Authorize(ctx, id, "", end), Banned)
	_, err = here.Attested(ctx, Attestation{ID: id, Type: "test"}, "7", end)
	denied(t, err, Banned)
	n, err := here.Delete(ctx, id)
	must(t, err)
	if n.ID != id || n.State != StateBanned {
		t.Fatalf("deleted %+v", n)
	}
	denied(t, here.Authorize(ctx, id, "5", end), NotAttested)
	attest(t, here, "one", "8", end)
	must(t, here.Authorize(ctx, id, "8", end))

	gone := agent("gone")
	for what, err := range map[string]error{
		"Ban": here.Ban(ctx, gone, "", "operator root"), "Renewed": here.Renewed(ctx, gone, "1", end), "SetVersion": here.SetVersion(ctx, gone, "1"),
		"Delete": func() error { _, err := here.Delete(ctx, gone); return err }(),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of nobody: %v", what, err)
		}
	}
}

// TestOvertaken: what a TPM said last is never replaced by what it, or a copy of it, said before, though
// the server that judged that had not heard of the later quote.
func TestOvertaken(t *testing.T) {
	s, c := storetest.Open(t), newClock()
	here, there := open(t, s, c), open(t, s, c)
	end := c.now().Add(time.Hour)
	of := func(clock uint64) Attestation {
		return Attestation{ID: agent("one"), Type: "tpm", CanReattest: true, TPM: &TPMState{Quoted: verify.Quoted{ResetCount: 1, Clock: clock}}}
	}
	_, err := here.Attested(t.Context(), of(200), "1", end)
	must(t, err)
	if _, err = there.Attested(t.Context(), of(100), "2", end); !errors.Is(err, errOvertaken) {
		t.Fatalf("an older quote: %v", err)
	}
	must(t, there.Authorize(t.Context(), agent("one"), "1", end))
	_, err = there.Attested(t.Context(), of(300), "3", end)
	must(t, err)
}

// TestManyRequestsActivate: the agent's first requests with its new SVID come at once, at two servers.
func TestManyRequestsActivate(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	servers := []*Registry{open(t, s, c), open(t, s, c)}
	end := c.now().Add(time.Hour)
	id := attest(t, servers[0], "one", "1", end)
	must(t, servers[0].Renewed(t.Context(), id, "2", end))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if err := servers[i%2].Authorize(t.Context(), id, "2", end); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	denied(t, servers[0].Authorize(t.Context(), id, "1", end), NotActive)
}

// TestBanWins: whatever is written at the same time, a banned agent stays banned.
func TestBanWins(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	a, b := open(t, s, c), open(t, s, c)
	end := c.now().Add(time.Hour)
	for round := range 5 {
		id := attest(t, a, fmt.Sprint("r", round), "1", end)
		var wg sync.WaitGroup
		wg.Go(func() { must(t, a.Ban(t.Context(), id, "", "operator root")) })
		for i := range 5 {
			wg.Go(func() {
				err := b.Renewed(t.Context(), id, fmt.Sprint(i), end)
				var d *DeniedError
				if err != nil && !errors.As(err, &d) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		denied(t, a.Authorize(t.Context(), id, "1", end), Banned)
		for tries := 0; b.Authorize(t.Context(), id, "1", end) == nil && tries < 500; tries++ {
			time.Sleep(10 * time.Millisecond) // until the other server has heard of it
		}
		for i := range 5 {
			denied(t, b.Authorize(t.Context(), id, fmt.Sprint(i), end), Banned)
		}
	}
}

func TestReopenAndForeignRecords(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	first := open(t, s, c)
	end := c.now().Add(time.Hour)
	id := attest(t, first, "one", "1", end)
	before := first.Get(id)
	first.Close()
	_, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{
		{Key: "n/spire/agent/test/broken", Value: []byte("{")},
		{Key: "n/spire/agent/test/liar", Value: []byte(`{"id":"spiffe://example.org/spire/agent/test/one","serial":"6"}`)},
	}})
	must(t, err)
	r := open(t, s, c)
	after := r.Get(id)
	if after == nil || after.Serial != before.Serial || !after.CreatedAt.Equal(before.CreatedAt) || !after.Selectors.Equal(before.Selectors) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if all, _, _ := r.List(Filter{}, 0, ""); len(all) != 1 {
		t.Errorf("%d nodes", len(all))
	}
	// The same path in another trust domain is another agent.
	other := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("evil.example"), id.Path())
	denied(t, r.Authorize(t.Context(), other, "1", end), NotAttested)
	if r.Get(other) != nil {
		t.Error("Get of another trust domain")
	}
}

func TestOnChange(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	here, there := open(t, s, c), open(t, s, c)
	var mu sync.Mutex
	var got []string
	stop := there.OnChange(func(id spiffeid.ID) {
		mu.Lock()
		defer mu.Unlock()
		state := "gone"
		if n := there.Get(id); n != nil {
			state = n.Serial
		}
		got = append(got, id.Path()+"="+state)
	})
	has := func(want string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return slices.Contains(got, want) }
	}
	id := attest(t, here, "one", "1", c.now().Add(time.Hour))
	eventually(t, has("/spire/agent/test/one=1"))
	_, err := here.Delete(t.Context(), id)
	must(t, err)
	eventually(t, has("/spire/agent/test/one=gone"))
	stop()
	n := len(got)
	attest(t, there, "two", "1", c.now().Add(time.Hour))
	mu.Lock()
	defer mu.Unlock()
	if len(got) != n {
		t.Errorf("called after stop: %v", got[n:])
	}
}

// unreachable is a store that went away.
type unreachable struct {
	Store
	away atomic.Bool
}

func (u *unreachable) Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	if u.away.Load() {
		return nil, 0, store.ErrUnavailable
	}
	return u.Store.Snapshot(ctx, prefix)
}

func (u *unreachable) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if u.away.Load() {
		return 0, store.ErrUnavailable
	}
	return u.Store.Commit(ctx, txn)
}

func TestStoreAway(t *testing.T) {
	c := newClock()
	u := &unreachable{Store: storetest.Open(t)}
	r := open(t, u, c)
	ctx, end := t.Context(), c.now().Add(time.Hour)
	id := attest(t, r, "one", "1", end)
	must(t, r.Renewed(ctx, id, "2", end))
	u.away.Store(true)
	must(t, r.Authorize(ctx, id, "1", end))
	must(t, r.Authorize(ctx, id, "2", end))
	// What can not be told is no reason to send an agent away for good.
	for _, serial := range []string{"3", ""} {
		err := r.Authorize(ctx, id, serial, end)
		var d *DeniedError
		if !errors.Is(err, store.ErrUnavailable) || errors.As(err, &d) {
			t.Errorf("serial %q: %v", serial, err)
		}
	}
	if err := r.Ban(ctx, id, "", "operator root"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Ban: %v", err)
	}
	u.away.Store(false)
	must(t, r.Authorize(ctx, id, "2", end))
	denied(t, r.Authorize(ctx, id, "1", end), NotActive)
}

func TestList(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	ctx, end := t.Context(), c.now().Add(time.Hour)
	set := func(names string) (s selectors.Set) {
		for _, n := range names {
			s = append(s, selectors.Selector{Type: "t", Value: string(n)})
		}
		return selectors.NewSet(s...)
	}
	for _, n := range []struct {
		name, sels, typ string
		reattest        bool
		end             time.Time
	}{{"d", "ab", "tpm", true, end}, {"c", "a", "tpm", true, end.Add(time.Hour)}, {"b", "abc", "x", false, end}, {"a", "", "x", false, end}} {
		_, err := r.Attested(ctx, Attestation{ID: agent(n.name), Type: n.typ, Selectors: set(n.sels), CanReattest: n.reattest}, "1", n.end)
		must(t, err)
	}
	must(t, r.Ban(ctx, agent("b"), "", "operator root"))
	yes, no := true, false
	for _, c := range []struct {
		what, want string
		f          Filter
	}{
		{"all, in order of creation", "dcba", Filter{}},
		{"type", "dc", Filter{AttestationType: "tpm"}},
		{"banned", "b", Filter{Banned: &yes}},
		{"not banned", "dca", Filter{Banned: &no}},
		{"can reattest", "dc", Filter{CanReattest: &yes}},
		{"can not", "ba", Filter{CanReattest: &no}},
		{"expires", "dba", Filter{ExpiresBefore: end.Add(time.Minute)}},
		{"exact", "d", Filter{Selectors: &SelectorMatch{set("ab"), Exact}}},
		{"subset", "dc", Filter{Selectors: &SelectorMatch{set("ab"), Subset}}},
		{"superset", "db", Filter{Selectors: &SelectorMatch{set("ab"), Superset}}},
		{"any", "dcb", Filter{Selectors: &SelectorMatch{set("ab"), Any}}},
		{"two at once", "d", Filter{AttestationType: "tpm", Selectors: &SelectorMatch{set("b"), Any}}},
	} {
		nodes, _, err := r.List(c.f, 0, "")
		must(t, err)
		if got := names(nodes); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
		if n, err := r.Count(c.f); err != nil || n != len(c.want) {
			t.Errorf("%s: count %d, %v", c.what, n, err)
		}
	}
	var pages []string
	for token := ""; ; {
		nodes, next, err := r.List(Filter{}, 2, token)
		must(t, err)
		pages = append(pages, names(nodes))
		if token = next; token == "" {
			break
		}
	}
	if !slices.Equal(pages, []string{"dc", "ba", ""}) {
		t.Errorf("pages %q", pages)
	}
	if _, _, err := r.List(Filter{}, 2, "x"); !errors.Is(err, errToken) {
		t.Errorf("a wrong token: %v", err)
	}
	if _, _, err := r.List(Filter{Selectors: &SelectorMatch{}}, 0, ""); !errors.Is(err, errNoSelectors) {
		t.Errorf("an empty set: %v", err)
	}
}

func names(nodes []*Node) (s string) {
	for _, n := range nodes {
		s += strings.TrimPrefix(n.ID.Path(), "/spire/agent/test/")
	}
	return s
}

func TestJoinToken(t *testing.T) {
	c := newClock()
	r := open(t, storetest.Open(t), c)
	ctx := t.Context()
	refused := func(token, text string) {
		t.Helper()
		err := r.UseJoinToken(ctx, token)
		var e *AttestError
		if !errors.As(err, &e) || e.Fault != FaultMessage || e.Error() != text {
			t.Fatalf("got %v, want %q", err, text)
		}
	}
	const spent = "failed to attest: join token does not exist or has already been used"
	_, err := r.CreateJoinToken(ctx, "token-1", time.Minute)
	must(t, err)
	_, err = r.CreateJoinToken(ctx, "token-12", time.Minute) // the other is its prefix
	must(t, err)
	if _, err := r.CreateJoinToken(ctx, "token-1", time.Minute); !errors.Is(err, errTokenExists) {
		t.Errorf("twice: %v", err)
	}
	for _, bad := range []string{"", "a/b", "..", "ü"} {
		if _, err := r.CreateJoinToken(ctx, bad, time.Minute); !errors.Is(err, errBadToken) {
			t.Errorf("%q: %v", bad, err)
		}
		refused(bad, spent)
	}
	if _, err := r.CreateJoinToken(ctx, "x", 0); !errors.Is(err, errBadTTL) {
		t.Errorf("no ttl: %v", err)
	}
	refused("token", spent)
	must(t, r.UseJoinToken(ctx, "token-1"))
	refused("token-1", spent)
	c.advance(2 * time.Minute)
	refused("token-12", "join token expired")
	refused("token-12", spent)

	_, err = r.CreateJoinToken(ctx, "stale", time.Minute)
	must(t, err)
	c.advance(2 * time.Minute)
	_, err = r.CreateJoinToken(ctx, "live", time.Minute)
	must(t, err)
	if n, err := r.PruneJoinTokens(ctx); n != 1 || err != nil {
		t.Errorf("pruned %d, %v", n, err)
	}
	refused("stale", spent)
	must(t, r.UseJoinToken(ctx, "live"))
}

// TestJoinTokenServesOnce: many agents with one token, on two servers.
func TestJoinTokenServesOnce(t *testing.T) {
	c := newClock()
	s := storetest.Open(t)
	servers := []*Registry{open(t, s, c), open(t, s, c)}
	_, err := servers[0].CreateJoinToken(t.Context(), "token", time.Minute)
	must(t, err)
	var admitted atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if servers[i%2].UseJoinToken(t.Context(), "token") == nil {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 1 {
		t.Errorf("%d agents were admitted", n)
	}
}

func TestAliasEntry(t *testing.T) {
	id := agent("one")
	alias := selectors.Entry{ParentID: id, Selectors: []selectors.Selector{IDSelector(id)}}
	if !IsAliasEntry(&alias, id) || IsAliasEntry(&alias, agent("two")) {
		t.Error("the alias is not recognized")
	}
	more := alias
	more.Selectors = append(slices.Clone(alias.Selectors), selectors.Selector{Type: "unix", Value: "uid:0"})
	if IsAliasEntry(&more, id) {
		t.Error("an ordinary entry counts as alias")
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("it did not happen within 10 s")
}
