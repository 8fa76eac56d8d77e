// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// becomes makes the server sign by another authority, and returns it.
func (s *server) becomes(t *testing.T, n byte, keyID string) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(n)), Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{n}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, s.key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ca, s.keyID = ca, keyID
	return ca
}

// What a tainted authority signed is replaced within taintSpread for listeners; its tokens at once.
func TestTaint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		old := s.becomes(t, 1, "old")
		m := manager(s, entry("a", 0))
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		x := fetch(t, m)[0]
		wit, err := m.WIT(t.Context(), pid(1), m.Match(set))
		if err != nil {
			t.Fatal(err)
		}
		token := pid(1).jwt(t, m, "aud")
		s.becomes(t, 2, "new")
		m.Trust(trust.Change{Own: bundle(trust.Tainted{X509: []*x509.Certificate{old}, JWT: []string{"old"}, WIT: []string{"old"}})})
		if got := pid(1).jwt(t, m, "aud"); got.Token == token.Token {
			t.Error("a token by a tainted authority was handed out")
		}
		woken(sub)
		time.Sleep(taintSpread + granule)
		synctest.Wait()
		if !woken(sub) {
			t.Fatal("nobody was woken")
		}
		next := fetch(t, m)[0]
		if next.Serial == x.Serial || m.taints(next) {
			t.Errorf("still by the tainted authority: %+v", next)
		}
		if got, err := m.WIT(t.Context(), pid(1), m.Match(set)); err != nil || got[0].Token == wit[0].Token {
			t.Errorf("WIT: %v, %v", got, err)
		}
		n := s.signed.Load()
		m.Trust(trust.Change{Own: bundle(trust.Tainted{})}) // revoked
		time.Sleep(time.Minute)
		if fetch(t, m)[0] != next || s.signed.Load() != n {
			t.Error("signed again without need")
		}
	})
}

// A server that goes on to sign by a tainted authority is asked again now and then, not all the time.
func TestTaintThatTheServerDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		old := s.becomes(t, 1, "old")
		m := manager(s, entry("a", 0))
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		done := make(chan struct{})
		go func() { // a stream
			for {
				if _, err := m.x509(t.Context()); err != nil {
					t.Error(err)
				}
				select {
				case <-sub.C():
				case <-done:
					return
				}
			}
		}()
		synctest.Wait()
		m.Trust(trust.Change{Own: bundle(trust.Tainted{X509: []*x509.Certificate{old}})})
		time.Sleep(20 * time.Second)
		if n := s.signed.Load(); n < 5 || n > 15 {
			t.Errorf("asked %d times in 20 s", n)
		}
		s.becomes(t, 2, "new")
		time.Sleep(retryAfter + time.Second)
		n := s.signed.Load()
		time.Sleep(20 * time.Second)
		if got := s.signed.Load(); got != n {
			t.Errorf("asked %d times more, with an SVID by a good authority", got-n)
		}
		close(done)
	})
}

// The channel of Trust is closed when all who listened then have shown the bundles, or are gone.
func TestBundlesSettle(t *testing.T) {
	m := manager(newServer(t), entry("a", 0))
	settled := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	change := func(kid string) <-chan struct{} {
		return m.Trust(trust.Change{Own: bundle(trust.Tainted{JWT: []string{kid}})})
	}
	if !settled(change("1")) {
		t.Error("nobody listens, and it does not settle")
	}
	a, b := m.Subscribe(&process{set: set}), m.Subscribe(&process{set: set})
	before := a.Version()
	first := change("2")
	a.Has(before)
	a.Has(a.Version())
	if settled(first) {
		t.Error("settled before the second one has it")
	}
	a.Has(a.Version()) // once more
	late := m.Subscribe(&process{set: set})
	if settled(first) {
		t.Error("settled by one twice")
	}
	second := change("3")
	b.Has(b.Version())
	late.Has(late.Version())
	if settled(first) || settled(second) {
		t.Error("settled before the first one has the second bundle")
	}
	if again := change("3"); settled(again) {
		t.Error("the same again settled before")
	}
	a.Close()
	if !settled(first) || !settled(second) {
		t.Error("not settled when the last one is gone")
	}
	if !settled(change("3")) {
		t.Error("the same bundle has to be seen again")
	}
}

// An entry's workloads get the bundles of the trust domains that it federates with, and no others.
func TestFederatedBundles(t *testing.T) {
	m := manager(newServer(t))
	foreign := func(name string) *trust.Bundle {
		b, err := trust.New(spiffebundle.New(spiffeid.RequireTrustDomainFromString(name)), trust.Tainted{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a, b := entry("a", 0), entry("b", 0)
	a.FederatesWith, b.FederatesWith = []string{"two.test", "one.test"}, []string{"one.test", "unknown.test"}
	names := func() (out string) {
		for _, b := range m.Bundles([]*selectors.Entry{a, b}) {
			out += b.TrustDomain().Name() + " "
		}
		return out
	}
	one, two, three := foreign("one.test"), foreign("two.test"), foreign("three.test")
	sub := m.Subscribe(&process{set: set})
	defer sub.Close()
	for i, c := range []struct {
		change trust.Change
		want   string
		woke   bool
	}{
		{trust.Change{Full: true, Foreign: []*trust.Bundle{one, two, three}}, "example.org one.test two.test ", true},
		{trust.Change{Foreign: []*trust.Bundle{foreign("one.test")}}, "example.org one.test two.test ", false},
		{trust.Change{Removed: []spiffeid.TrustDomain{two.TrustDomain()}}, "example.org one.test ", true},
		{trust.Change{Full: true, Foreign: []*trust.Bundle{two}}, "example.org two.test ", true},
		{trust.Change{}, "example.org two.test ", false},
	} {
		m.Trust(c.change)
		if got := names(); got != c.want || woken(sub) != c.woke {
			t.Errorf("step %d: %s", i, got)
		}
	}
}
