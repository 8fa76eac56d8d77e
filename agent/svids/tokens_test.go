// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/assay-id/assay/selectors"
)

func (p *process) jwt(t *testing.T, m *Manager, audience ...string) *SVID {
	t.Helper()
	got, err := m.JWT(t.Context(), p, m.Match(p.set), audience)
	if err != nil || len(got) != 1 || got[0].Kind != JWT {
		t.Fatalf("got %v, %v", got, err)
	}
	return got[0]
}

func pid(n uint32) *process {
	return &process{facts: selectors.Facts{Process: selectors.ProcessKey{TGID: n}}, set: set}
}

// A token is for one audience, one process, and what that process is now.
func TestTokensAreKeptForWhatTheyAreFor(t *testing.T) {
	m := manager(newServer(t), entry("a", 0))
	p := pid(1)
	first := p.jwt(t, m, "x")
	if again := p.jwt(t, m, "x"); again != first {
		t.Error("signed again for the same")
	}
	other := *p
	other.set = append(slices.Clone(set), selectors.Selector{Type: "unix", Value: "user:x"})
	for name, got := range map[string]*SVID{
		"another audience": p.jwt(t, m, "y"), "two audiences": p.jwt(t, m, "x", "y"), "one of two names": p.jwt(t, m, "x\x00y"),
		"another process": pid(2).jwt(t, m, "x"), "the process with other selectors": other.jwt(t, m, "x"),
	} {
		if got.Token == first.Token {
			t.Errorf("%s got the first one's token", name)
		}
	}
	if a, b := p.jwt(t, m, "x", "y"), p.jwt(t, m, "x\x00y"); a.Token == b.Token {
		t.Error("two audiences and one got the same")
	}
	m.Entries(false, []*selectors.Entry{entry("a", 1)}, nil, 2)
	if got := p.jwt(t, m, "x"); got.EntryRevision != 1 {
		t.Error("a new revision got the old token")
	}
	m.Entries(false, nil, []string{"a"}, 3)
	if st := m.State(); st.SVIDs != 0 || m.tokens.Len() != 0 {
		t.Errorf("tokens of a removed entry are kept: %+v, %d", st, m.tokens.Len())
	}
}

func TestTokensWithAnIdentifierAreNotKept(t *testing.T) {
	e := entry("a", 0)
	e.Attributes = &selectors.EntryAttributes{JWTSVIDIncludeJTI: true}
	m := manager(newServer(t), e)
	if a, b := pid(1).jwt(t, m, "x"), pid(1).jwt(t, m, "x"); a.Token == b.Token || m.State().SVIDs != 0 {
		t.Error("a token with a jti was handed out twice")
	}
}

// The tokens that were used last are kept.
func TestTokensAreBounded(t *testing.T) {
	s := newServer(t)
	m := manager(s, entry("a", 0))
	keep := pid(1).jwt(t, m, "keep")
	for n := range maxTokens + 10 {
		pid(2).jwt(t, m, fmt.Sprint(n))
		if pid(1).jwt(t, m, "keep") != keep {
			t.Fatalf("the token in use went after %d others", n)
		}
	}
	if m.State().SVIDs != maxTokens || m.tokens.Len() != maxTokens {
		t.Errorf("%d tokens, %d in the list", m.State().SVIDs, m.tokens.Len())
	}
	before := s.signed.Load()
	if pid(2).jwt(t, m, "0"); s.signed.Load() == before {
		t.Error("the oldest token was kept")
	}
}

func TestTokensSignedOnceForMany(t *testing.T) {
	s := newServer(t)
	m := manager(s, entry("a", 0))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := m.JWT(t.Context(), pid(1), m.Match(set), []string{"x"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.signed.Load(); n != 1 {
		t.Errorf("signed %d times", n)
	}
}

func TestTokensRenewedAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.ttl = 5 * time.Minute
		m := manager(s, entry("a", 0))
		p := pid(1)
		first := p.jwt(t, m, "x")
		time.Sleep(2 * time.Minute)
		if p.jwt(t, m, "x") != first {
			t.Error("renewed before half its life")
		}
		time.Sleep(time.Minute)
		s.fail(errors.New("connection refused"))
		if p.jwt(t, m, "x") != first {
			t.Error("a valid token was not kept while the server was away")
		}
		changed := *p
		changed.set = append(slices.Clone(set), selectors.Selector{Type: "unix", Value: "user:x"})
		if got, err := m.JWT(t.Context(), &changed, m.Match(set), []string{"x"}); err == nil {
			t.Errorf("a process that changed got the token of before: %v", got)
		}
		s.fail(nil)
		time.Sleep(4 * retryAfter) // two failed
		if p.jwt(t, m, "x") == first {
			t.Error("not renewed after half its life")
		}
		time.Sleep(5 * time.Minute)
		s.fail(errors.New("connection refused"))
		if got, err := m.JWT(t.Context(), p, m.Match(set), []string{"x"}); err == nil {
			t.Errorf("an expired token was served: %v", got)
		}
	})
}

// A WIT-SVID comes with a private key as a JWK that says its algorithm; it is shared and renewed like X.509.
func TestWIT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(newServer(t), entry("a", 0))
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		get := func() *SVID {
			list, err := m.WIT(t.Context(), pid(1), m.Match(set))
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			return list[0]
		}
		first := get()
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(first.Key); err != nil || key.Algorithm != "ES256" || key.IsPublic() {
			t.Errorf("key %s, %v", first.Key, err)
		}
		if _, ok := key.Key.(*ecdsa.PrivateKey); !ok || get() != first || first.Serial == "" {
			t.Errorf("got %+v", first)
		}
		woken(sub)
		time.Sleep(34 * time.Minute)
		if !woken(sub) || get() == first {
			t.Error("not renewed at half life")
		}
		if x := fetch(t, m)[0]; x.Kind != X509 || x.Token != "" {
			t.Errorf("X.509: %+v", x)
		}
	})
}

func TestHints(t *testing.T) {
	at := func(id, hint string, second int64) *selectors.Entry {
		e := entry(id, 0)
		e.Hint, e.CreatedAt = hint, time.Unix(second, 0)
		return e
	}
	got := Hints([]*selectors.Entry{at("a", "x", 5), at("b", "x", 3), at("c", "", 1), at("d", "y", 9), at("e", "x", 3)})
	if want := map[string]string{"b": "x", "d": "y"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
