// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/server/webcert"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

var (
	here  = spiffeid.RequireTrustDomainFromString("here.test")
	there = spiffeid.RequireTrustDomainFromString("there.test")
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority is an X.509 authority of some trust domain, or of the web.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, uri string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t)}
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: uri}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if uri != "" {
		tmpl.URIs = []*url.URL{spiffeid.RequireFromString(uri).URL()}
	}
	a.cert = a.sign(tmpl, &a.key.PublicKey, tmpl)
	return a
}

func (a *authority) sign(tmpl *x509.Certificate, key *ecdsa.PublicKey, parent *x509.Certificate) *x509.Certificate {
	a.t.Helper()
	var err error
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// leaf is a TLS certificate: an X509-SVID, or for the web without a SPIFFE ID.
func (a *authority) leaf(id string) *tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	tmpl := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if id != "" {
		tmpl.URIs = []*url.URL{spiffeid.RequireFromString(id).URL()}
	} else {
		tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	return &tls.Certificate{PrivateKey: key, Certificate: [][]byte{a.sign(tmpl, &key.PublicKey, a.cert).Raw}}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// publisher holds a bundle that changes.
type publisher struct {
	mu     sync.Mutex
	bundle *federation.Bundle
}

func (p *publisher) own() (*federation.Bundle, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bundle, nil
}

func (p *publisher) set(change func(*federation.Bundle)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := *p.bundle
	change(&b)
	p.bundle = &b
}

// newBundle has an authority of each kind.
func newBundle(t testing.TB, td spiffeid.TrustDomain, a *authority) *federation.Bundle {
	return &federation.Bundle{
		TrustDomain: td, Sequence: 7, X509: []*x509.Certificate{a.cert},
		JWT: []federation.Authority{{ID: "jwt-1", PublicKey: newKey(t).Public()}},
		WIT: []federation.Authority{{ID: "wit-1", PublicKey: newKey(t).Public()}},
	}
}

// serve serves over TLS on the loopback until the test ends and returns the URL.
func serve(t testing.TB, cert *tls.Certificate, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	conf := webcert.TLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil })
	go func() { done <- webcert.Serve(ctx, l, conf, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return "https://" + l.Addr().String() + "/"
}

// clock is set by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// env is one server's federation, with its entries, over a real store.
type env struct {
	*federation.Registry
	store   *store.Store
	entries *entries.Registry
	clock   *clock
	logs    *logs
}

type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func open(t *testing.T, td spiffeid.TrustDomain, change func(*federation.Config)) *env {
	t.Helper()
	return openOver(t, storetest.Open(t), td, change)
}

func openOver(t *testing.T, s *store.Store, td spiffeid.TrustDomain, change func(*federation.Config)) *env {
	t.Helper()
	e := &env{store: s, clock: &clock{at: time.Now()}, logs: &logs{}}
	log := slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	e.entries, err = entries.Open(t.Context(), entries.Config{
		Store: s, TrustDomain: td, Logger: log, HasBundle: func(td spiffeid.TrustDomain) bool { return e.HasBundle(td) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.entries.Close)
	cfg := federation.Config{Store: s, TrustDomain: td, Entries: e.entries, Logger: log, Now: e.clock.now,
		Own: func() (*federation.Bundle, <-chan struct{}) { return &federation.Bundle{TrustDomain: td}, nil }}
	if change != nil {
		change(&cfg)
	}
	if e.Registry, err = federation.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Registry.Close)
	return e
}

// run polls until the test ends.
func (e *env) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func one[T any](t *testing.T, results []federation.Result[T]) T {
	t.Helper()
	if len(results) != 1 || results[0].Err != nil {
		t.Fatalf("results: %+v", results)
	}
	return results[0].Value
}

// entry creates an entry that federates with the trust domains.
func (e *env) entry(t *testing.T, path string, federatesWith ...string) *selectors.Entry {
	t.Helper()
	parent, id := spiffeid.RequireFromPath(here, "/spire/agent/x"), spiffeid.RequireFromPath(here, path)
	res := e.entries.Create(t.Context(), []*selectors.Entry{{ParentID: parent, SPIFFEID: id, Selectors: []selectors.Selector{{Type: "unix", Value: "uid:0"}}, FederatesWith: federatesWith}})
	if res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	return res[0].Entry
}

// tlsLeaf is a certificate that may not sign others.
func tlsLeaf(a *authority) (*authority, error) {
	c := a.leaf(there.IDString() + "/w")
	cert, err := x509.ParseCertificate(c.Certificate[0])
	return &authority{t: a.t, cert: cert, key: c.PrivateKey.(*ecdsa.PrivateKey)}, err
}
