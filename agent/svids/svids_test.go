// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// server signs with a throw-away CA and can be made to fail.
type server struct {
	key    *ecdsa.PrivateKey
	signed atomic.Int32
	// perProcess: it says that what it signs is for one process.
	perProcess atomic.Bool
	ttl        time.Duration
	ca         *x509.Certificate // nil: certificates are self-signed
	keyID      string            // of the tokens
	mu         sync.Mutex
	err        error
}

func newServer(t *testing.T) *server {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &server{key: key, ttl: time.Hour}
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *server) SignX509SVID(_ context.Context, e *selectors.Entry, csr []byte, _ *selectors.Facts) ([]*x509.Certificate, bool, error) {
	s.mu.Lock()
	err, ca := s.err, s.ca
	s.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, false, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, false, err
	}
	n := s.signed.Add(1)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(n)), NotBefore: time.Now(), NotAfter: time.Now().Add(s.ttl), URIs: []*url.URL{e.SPIFFEID.URL()}}
	if ca == nil {
		ca = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, req.PublicKey, s.key)
	if err != nil {
		return nil, false, err
	}
	c, err := x509.ParseCertificate(der)
	return []*x509.Certificate{c}, s.perProcess.Load(), err
}

func (s *server) token(e *selectors.Entry, what any) (trust.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return trust.Token{}, s.err
	}
	return trust.Token{Text: fmt.Sprint(e.ID, s.signed.Add(1), what), KeyID: s.keyID, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(s.ttl), PerProcess: s.perProcess.Load()}, nil
}

func (s *server) SignJWTSVID(_ context.Context, e *selectors.Entry, audience []string, _ *selectors.Facts) (trust.Token, error) {
	return s.token(e, audience)
}

func (s *server) SignWITSVID(_ context.Context, e *selectors.Entry, public []byte, algorithm string, _ *selectors.Facts) (trust.Token, error) {
	return s.token(e, algorithm)
}

type verdict struct{}

func (verdict) Error() string { return "no" }
func (verdict) Refused() bool { return true }

var set = selectors.NewSet(selectors.Selector{Type: "unix", Value: "uid:1"}, selectors.Selector{Type: "unix", Value: "gid:1"})

func entry(id string, revision int64) *selectors.Entry {
	return &selectors.Entry{ID: id, SPIFFEID: spiffeid.RequireFromPath(td, "/"+id), Revision: revision, Selectors: set[:1]}
}

func manager(s Signer, entries ...*selectors.Entry) *Manager {
	m := New(Config{Signer: s, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	m.Trust(trust.Change{Own: bundle(trust.Tainted{})})
	m.Entries(true, entries, nil, 1)
	return m
}

// bundle has no authorities; what is tainted need not be in it.
func bundle(tainted trust.Tainted) *trust.Bundle {
	b, err := trust.New(spiffebundle.New(td), tainted)
	if err != nil {
		panic(err)
	}
	return b
}

// process is a caller.
type process struct {
	facts selectors.Facts
	set   selectors.Set
}

func (p *process) Facts() *selectors.Facts  { return &p.facts }
func (p *process) Selectors() selectors.Set { return p.set }

func (m *Manager) x509(ctx context.Context) ([]*SVID, error) {
	return m.X509(ctx, &process{set: set}, m.Match(set))
}

func fetch(t *testing.T, m *Manager) []*SVID {
	t.Helper()
	got, err := m.x509(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func woken(s *Subscription) bool {
	select {
	case <-s.C():
		return true
	default:
		return false
	}
}

func TestSignsOnceForManyCallers(t *testing.T) {
	s := newServer(t)
	m := manager(s, entry("a", 0), entry("b", 0))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got, err := m.x509(context.Background()); err != nil || len(got) != 2 || got[0].ID.Path() != "/a" {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := s.signed.Load(); n != 2 {
		t.Errorf("signed %d times for two entries", n)
	}
}

func TestChangesReachOnlyWhoTheyConcern(t *testing.T) {
	m := manager(newServer(t), entry("a", 0))
	mine, other := m.Subscribe(&process{set: set}), m.Subscribe(&process{set: set[1:]})
	for _, c := range []struct {
		what           string
		change         func()
		mine, everyone bool
	}{
		{"the same entry again", func() { m.Entries(false, []*selectors.Entry{entry("a", 0)}, nil, 2) }, false, false},
		{"a new revision", func() { m.Entries(false, []*selectors.Entry{entry("a", 1)}, nil, 3) }, true, false},
		{"an unknown id removed", func() { m.Entries(false, nil, []string{"x"}, 4) }, false, false},
		{"removed", func() { m.Entries(false, nil, []string{"a"}, 5) }, true, false},
		{"back by a full view", func() { m.Entries(true, []*selectors.Entry{entry("a", 1)}, nil, 6) }, true, false},
		{"gone by a full view", func() { m.Entries(true, nil, nil, 7) }, true, false},
		{"the same bundle", func() { m.Trust(trust.Change{Own: bundle(trust.Tainted{})}) }, false, false},
		{"another bundle", func() { m.Trust(trust.Change{Own: bundle(trust.Tainted{JWT: []string{"x"}})}) }, true, true},
	} {
		c.change()
		if a, b := woken(mine), woken(other); a != c.mine || b != c.everyone {
			t.Errorf("%s: woke mine=%v other=%v", c.what, a, b)
		}
	}
}

func TestNewRevisionIsSignedAnew(t *testing.T) {
	s := newServer(t)
	m := manager(s, entry("a", 0))
	first := fetch(t, m)[0]
	m.Entries(false, []*selectors.Entry{entry("a", 1)}, nil, 2)
	if second := fetch(t, m)[0]; second.Serial == first.Serial || second.EntryRevision != 1 {
		t.Errorf("got %+v", second)
	}
}

func TestServerAwayAndServerSaysNo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		m := manager(s, entry("a", 0))
		sub := m.Subscribe(&process{set: set})
		defer sub.Close()
		first := fetch(t, m)[0]
		s.fail(errors.New("connection refused"))
		time.Sleep(40 * time.Minute) // past half life
		if got := fetch(t, m)[0]; got != first {
			t.Error("a valid SVID was not kept while the server was away")
		}
		time.Sleep(21 * time.Minute) // past its end
		if got, err := m.x509(t.Context()); err == nil || len(got) != 0 {
			t.Errorf("an expired SVID was served: %v, %v", got, err)
		}
		s.fail(nil)
		fetch(t, m)
		m.Entries(false, []*selectors.Entry{entry("a", 1)}, nil, 2)
		s.fail(verdict{})
		if got, err := m.x509(t.Context()); err == nil || len(got) != 0 {
			t.Errorf("a verdict was ignored: %v, %v", got, err)
		}
	})
}

func TestRenewsForListenersAndDropsWithoutThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		m := manager(s, entry("a", 0))
		sub := m.Subscribe(&process{set: set})
		first := fetch(t, m)[0]
		woken(sub) // of the first issue
		time.Sleep(34 * time.Minute)
		if !woken(sub) {
			t.Fatal("nobody was woken at half life")
		}
		if second := fetch(t, m)[0]; second.Serial == first.Serial {
			t.Error("not renewed")
		}
		sub.Close()
		time.Sleep(2 * time.Hour)
		if st := m.State(); st.SVIDs != 0 || st.Subscriptions != 0 {
			t.Errorf("kept without listeners: %+v", st)
		}
	})
}

func TestExpiredEntriesDoNotCount(t *testing.T) {
	e := entry("a", 0)
	e.ExpiresAt = time.Now().Add(-time.Second)
	if got := manager(newServer(t), e).Match(set); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
