// SPDX-License-Identifier: Apache-2.0

package revocation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/revocation"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

var td = spiffeid.RequireTrustDomainFromString("example.org")

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time          { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

// site is one server's CA and registry.
type site struct {
	t   *testing.T
	dir string
	clk *clock
	st  revocation.Store
	ca  *ca.CA
	*revocation.Registry
	told atomic.Int32
}

func open(t *testing.T, st interface {
	ca.Store
	revocation.Store
}, dir string, clk *clock) *site {
	t.Helper()
	s := &site{t: t, dir: dir, clk: clk, st: st}
	var err error
	s.ca, err = ca.Open(t.Context(), ca.Config{Dir: filepath.Join(dir, "ca"), TrustDomain: td, Store: st, Now: clk.now, CRLs: "http://crl.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	s.open()
	return s
}

func (s *site) open() {
	s.t.Helper()
	if err := s.tryOpen(s.st); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) tryOpen(st revocation.Store) (err error) {
	s.Registry, err = revocation.Open(s.t.Context(), revocation.Config{
		Dir: filepath.Join(s.dir, "signed"), ServerID: s.ca.ServerID(), Store: st, Authorities: s.ca, Life: 24 * time.Hour,
		Told: func(*revocation.Revocation) { s.told.Add(1) }, Now: s.clk.now, Logger: slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	return err
}

func (s *site) close() { s.Registry.Close(); s.ca.Close() }

// issue signs an SVID for a workload of a node, and writes it down.
func (s *site) issue(path, node, entry string) *x509.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := s.ca.SignWorkload(ca.Request{ID: spiffeid.RequireFromPath(td, path), PublicKey: key.Public()})
	if err != nil {
		s.t.Fatal(err)
	}
	r := revocation.Record{SPIFFEID: "spiffe://example.org" + path, Node: node, Entry: entry, NotAfter: chain[0].NotAfter}
	r.Authority, r.Serial = revocation.KeyOf(chain[0])
	if err := s.Issued(s.t.Context(), r); err != nil {
		s.t.Fatal(err)
	}
	return chain[0]
}

func (s *site) revoke(scope revocation.Scope, want int) {
	s.t.Helper()
	out, err := s.Revoke(s.t.Context(), revocation.Request{Scope: scope, Reason: 1, Why: "test", By: "operator me"})
	if err != nil || out.Revoked != want || len(out.Waiting)+len(out.Failed) > 0 {
		s.t.Errorf("Revoke(%+v) = %+v, %v; want %d", scope, out, err, want)
	}
}

// list is the list that has what the authority of a certificate says of it.
func (s *site) list(cert *x509.Certificate) *x509.RevocationList {
	s.t.Helper()
	authority, _ := revocation.KeyOf(cert)
	all, _ := s.CRLs()
	if all[authority] == nil {
		return nil
	}
	l, err := x509.ParseRevocationList(all[authority])
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

func (s *site) listed(cert *x509.Certificate) bool {
	l := s.list(cert)
	if l == nil {
		return false
	}
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

func (s *site) want(what string, cert *x509.Certificate, revoked bool) {
	s.t.Helper()
	if s.Revoked(cert) != revoked || s.listed(cert) != revoked {
		s.t.Errorf("%s: revoked %t, listed %t; want %t", what, s.Revoked(cert), s.listed(cert), revoked)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no ", what)
		}
	}
}

const nodeA, nodeB = "spiffe://example.org/spire/agent/x/a", "spiffe://example.org/spire/agent/x/b"

// openssl verifies a certificate with its authority's list, as relying parties do that know nothing of us.
func (s *site) openssl(cert *x509.Certificate) (string, error) {
	s.t.Helper()
	dir := s.t.TempDir()
	b, _ := s.ca.Bundle()
	var roots []byte
	for _, root := range b.Roots() {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	for name, data := range map[string][]byte{
		"roots": roots, "leaf": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		"crl": pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: s.list(cert).Raw}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	out, err := exec.Command("openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", dir+"/roots", "-CRLfile", dir+"/crl", dir+"/leaf").CombinedOutput()
	return string(out), err
}

func TestRevoke(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	s := open(t, storetest.Open(t), t.TempDir(), clk)
	defer func() { s.close() }()
	one, two, three := s.issue("/a", nodeA, "e1"), s.issue("/b", nodeA, "e2"), s.issue("/b", nodeB, "e2")
	if all, _ := s.CRLs(); len(all) != 0 {
		t.Errorf("%d lists before anything was revoked", len(all))
	}
	_, changed := s.CRLs()
	s.revoke(revocation.Scope{Entry: "e1"}, 1)
	s.want("by entry", one, true)
	s.want("another", two, false)
	select {
	case <-changed:
	default:
		t.Error("the channel of the lists was not closed")
	}
	if out, err := s.openssl(one); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl accepts a revoked certificate: %s, %v", out, err)
	}
	if out, err := s.openssl(two); err != nil {
		t.Errorf("openssl refuses another certificate: %s, %v", out, err)
	}
	first := s.list(one)
	root := func() *x509.Certificate { b, _ := s.ca.Bundle(); return b.Roots()[0] }()
	if err := first.CheckSignatureFrom(root); err != nil || first.Number.Int64() != 1 || first.RevokedCertificateEntries[0].ReasonCode != 1 ||
		!first.NextUpdate.Equal(clk.now().Add(time.Hour)) || first.ThisUpdate.After(clk.now()) || string(first.AuthorityKeyId) != string(root.SubjectKeyId) {
		t.Errorf("the list: %+v, %v", first, err)
	}

	s.revoke(revocation.Scope{SPIFFEID: "spiffe://example.org/b", Node: nodeB}, 1)
	s.want("by identity and node", three, true)
	s.want("the same identity elsewhere", two, false)
	s.revoke(revocation.Scope{Entry: "e1"}, 1) // again: nothing new
	if n := s.list(one).Number.Int64(); n != 2 {
		t.Errorf("list number %d, want 2", n)
	}
	_, serial := revocation.KeyOf(two)
	s.revoke(revocation.Scope{Serial: serial}, 1)
	s.want("by serial number", two, true)
	if s.told.Load() != 3 {
		t.Errorf("told %d times", s.told.Load())
	}
	for _, scope := range []revocation.Scope{{}, {Authority: "ab"}, {Serial: "0x12"}, {Serial: "-1"}, {Serial: strings.Repeat("9", 60)}} {
		if _, err := s.Revoke(t.Context(), revocation.Request{Scope: scope}); !errors.Is(err, revocation.ErrInvalid) {
			t.Errorf("Revoke(%+v): %v", scope, err)
		}
	}
	if _, err := s.Revoke(t.Context(), revocation.Request{Scope: revocation.Scope{Serial: serial}, Reason: 6}); !errors.Is(err, revocation.ErrInvalid) {
		t.Errorf("reason 6: %v", err)
	}
	s.revoke(revocation.Scope{Serial: "12345"}, 0)

	// A restart, of everything but the store.
	number := s.list(one).Number.Int64()
	s.Registry.Close()
	s.open()
	s.want("after a restart", one, true)
	list := s.List()
	at := slices.IndexFunc(list, func(i revocation.Item) bool { return i.Serial == one.SerialNumber.String() })
	if len(list) != 3 || at < 0 {
		t.Fatalf("List = %+v", list)
	}
	if i := list[at]; !i.Listed || i.Why != "test" || i.By != "operator me" || i.Node != nodeA || i.Reason != 1 {
		t.Errorf("List has %+v", i.Revocation)
	}
	if n := s.list(one).Number.Int64(); n != number {
		t.Errorf("a restart made list %d of %d", n, number)
	}
	// One that no server has a record of.
	lost := s.issue("/lost", "", "")
	s.Registry.Close()
	if err := os.RemoveAll(filepath.Join(s.dir, "signed")); err != nil {
		t.Fatal(err)
	}
	s.open()
	if out, err := s.RevokeCertificate(t.Context(), lost, revocation.Request{Reason: 4}); err != nil || out.Revoked != 1 || len(out.Waiting)+len(out.Failed) > 0 {
		t.Errorf("RevokeCertificate = %+v, %v", out, err)
	}
	s.want("by certificate", lost, true)
}

// A list is signed anew at half of its time, and an SVID leaves it after one list that was made after its end.
func TestListsAreKeptFresh(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	s := open(t, storetest.Open(t), t.TempDir(), clk)
	defer func() { s.close() }()
	one := s.issue("/a", nodeA, "e")
	s.revoke(revocation.Scope{Entry: "e"}, 1)
	again := func(d time.Duration) { // a turn of the worker: any request
		clk.advance(d)
		s.revoke(revocation.Scope{Serial: "77"}, 0)
	}
	again(29 * time.Minute)
	if n := s.list(one).Number.Int64(); n != 1 {
		t.Errorf("number %d before half of its time", n)
	}
	again(2 * time.Minute)
	if l := s.list(one); l.Number.Int64() != 2 || !l.NextUpdate.Equal(clk.now().Add(time.Hour)) || !s.listed(one) {
		t.Errorf("after half of its time: number %v, next %v", l.Number, l.NextUpdate)
	}
	again(40 * time.Minute) // the SVID has ended
	if !s.listed(one) || len(s.List()) != 0 {
		t.Errorf("after its end: listed %t, %d in List", s.listed(one), len(s.List()))
	}
	again(2 * time.Hour)
	if s.listed(one) {
		t.Error("listed long after its end")
	}
}

// Two servers: a node's SVIDs are revoked by those who signed them; one that is away does so when it is back.
func TestTwoServers(t *testing.T) {
	st, clk := storetest.Open(t), &clock{t: time.Now().Truncate(time.Second)}
	a := open(t, st, t.TempDir(), clk)
	defer func() { a.close() }()
	b := open(t, st, t.TempDir(), clk)
	defer func() { b.close() }()
	byA, byB, other := a.issue("/w", nodeA, "e"), b.issue("/w", nodeA, "e"), b.issue("/w", nodeB, "e")
	if string(byA.AuthorityKeyId) == string(byB.AuthorityKeyId) {
		t.Fatal("both have one authority")
	}
	a.NodeRefused(nodeA, clk.now(), "the node is suspended")
	eventually(t, "list of both at both", func() bool { return a.listed(byA) && a.listed(byB) && b.listed(byA) && b.listed(byB) })
	a.want("another node's", other, false)
	b.NodeRefused(nodeA, clk.now(), "the node is suspended") // heard by the other, too
	b.revoke(revocation.Scope{Serial: "1"}, 0)               // a turn
	later := b.issue("/w", nodeA, "e")                       // it was readmitted
	b.revoke(revocation.Scope{Serial: "1"}, 0)
	b.want("signed after the node came back", later, false)

	away := b.issue("/w", nodeA, "away")
	b.Registry.Close()
	began := time.Now()
	out, err := a.Revoke(t.Context(), revocation.Request{Scope: revocation.Scope{Entry: "away"}})
	if err != nil || out.Revoked != 0 || len(out.Waiting) != 1 || out.Waiting[0] != b.ca.ServerID() || time.Since(began) < 4*time.Second {
		t.Errorf("with a server away: %+v, %v, after %v", out, err, time.Since(began))
	}
	if a.Revoked(away) {
		t.Error("revoked by nobody")
	}
	b.open()
	b.want("when it is back", away, true)
	eventually(t, "list at the other", func() bool { return a.listed(away) })
}

// failing is a store of which the commit with a number does not answer: before or after it happened.
type failing struct {
	*store.Store
	left  atomic.Int32
	after bool
}

var errCut = errors.New("cut off")

func (f *failing) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if f.left.Add(-1) >= 0 {
		return f.Store.Commit(ctx, txn)
	}
	if f.after {
		f.after = false
		_, _ = f.Store.Commit(ctx, txn) // whether it fails or not, nobody hears
	}
	return 0, errCut
}

// TestCrashBetweenSteps ends a server at each of its writes; the next run does the rest, and not more.
func TestCrashBetweenSteps(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	for n := range int32(4) {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("commit %d, happened %t", n, after), func(t *testing.T) {
				real := storetest.Open(t)
				s := open(t, real, t.TempDir(), clk)
				entry := fmt.Sprintf("e-%d-%t", n, after)
				one, keep := s.issue("/a", nodeA, entry), s.issue("/a", nodeA, "keep")
				s.Registry.Close()
				// Another server asks meanwhile; ours works it off in Open.
				asker := open(t, real, t.TempDir(), clk)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				_, err := asker.Revoke(ctx, revocation.Request{Scope: revocation.Scope{Entry: entry}, Reason: 1})
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("nobody is there, and it ended: %v", err)
				}
				f := &failing{Store: real, after: after}
				f.left.Store(n)
				if err := s.tryOpen(f); err == nil {
					s.Registry.Close()
				} else if !errors.Is(err, errCut) {
					t.Fatal(err)
				}
				s.open()
				s.want("after the crash", one, true)
				s.want("another", keep, false)
				eventually(t, "list at the asker", func() bool { return asker.listed(one) })
				s.revoke(revocation.Scope{Entry: entry}, 1)
				if n := s.list(one).Number.Int64(); n > 2 {
					t.Errorf("list number %d", n)
				}
				s.close()
				asker.close()
			})
		}
	}
}

func TestHandler(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	s := open(t, storetest.Open(t), t.TempDir(), clk)
	defer func() { s.close() }()
	one := s.issue("/a", nodeA, "e")
	s.revoke(revocation.Scope{Entry: "e"}, 1)
	if len(one.CRLDistributionPoints) != 1 {
		t.Fatalf("distribution points %v", one.CRLDistributionPoints)
	}
	path, ok := strings.CutPrefix(one.CRLDistributionPoints[0], "http://crl.example.org")
	if !ok {
		t.Fatal(one.CRLDistributionPoints[0])
	}
	get := func(method, path, etag string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, path, nil)
		if etag != "" {
			req.Header.Set("If-None-Match", etag)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, req)
		return w
	}
	w := get(http.MethodGet, path, "")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/pkix-crl" || w.Body.String() != string(s.list(one).Raw) || !strings.Contains(w.Header().Get("Cache-Control"), "max-age=1795") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, c := range []struct {
		method, path, etag string
		code               int
	}{
		{http.MethodGet, path, w.Header().Get("ETag"), 304}, {http.MethodHead, path, "", 200}, {http.MethodPost, path, "", 405},
		{http.MethodGet, "/00.crl", "", 404}, {http.MethodGet, strings.TrimSuffix(path, ".crl"), "", 404}, {http.MethodGet, "/", "", 404},
	} {
		if got := get(c.method, c.path, c.etag).Code; got != c.code {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got, c.code)
		}
	}
}

// An agent may revoke what was signed for it, and not without end.
func TestRevokeForNode(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	s := open(t, storetest.Open(t), t.TempDir(), clk)
	defer func() { s.close() }()
	its, others := s.issue("/a", nodeA, "e"), s.issue("/a", nodeB, "e")
	try := func(cert *x509.Certificate) int {
		authority, serial := revocation.KeyOf(cert)
		out, err := s.RevokeForNode(t.Context(), nodeA, revocation.Request{Scope: revocation.Scope{Authority: authority, Serial: serial}, Reason: 1})
		if err != nil || len(out.Waiting) > 0 {
			t.Fatalf("%+v, %v", out, err)
		}
		return out.Revoked
	}
	if n := try(its); n != 1 {
		t.Errorf("its own: %d", n)
	}
	if n := try(others); n != 0 {
		t.Errorf("another's: %d", n)
	}
	s.want("its own", its, true)
	s.want("another's", others, false)
}
