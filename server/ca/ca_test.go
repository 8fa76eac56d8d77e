// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca"
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

func open(t *testing.T, s ca.Store, dir string, clk *clock) *ca.CA {
	t.Helper()
	c, err := ca.Open(t.Context(), ca.Config{
		Dir: dir, TrustDomain: td, Store: s, Now: clk.now,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func workload(t *testing.T, c *ca.CA, req ca.Request) *x509.Certificate {
	t.Helper()
	req.PublicKey = key(t).Public()
	if req.ID.IsZero() {
		req.ID = spiffeid.RequireFromPath(td, "/w")
	}
	chain, err := c.SignWorkload(req)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 1 {
		t.Fatalf("a chain of %d: the self-signed root must not be in it", len(chain))
	}
	return chain[0]
}

func TestShapes(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	dir := t.TempDir()
	c := open(t, storetest.Open(t), dir, clk)
	b, _ := c.Bundle()
	if len(b.X509) != 1 || len(b.JWT) != 1 || len(b.WIT) != 1 || b.Sequence != 2 {
		t.Fatalf("first bundle: %d authorities, sequence %d", len(b.X509), b.Sequence)
	}
	root := b.X509[0].Cert
	if !root.IsCA || root.MaxPathLen != -1 || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign ||
		len(root.AuthorityKeyId) != 0 || len(root.SubjectKeyId) != 20 || root.URIs[0].String() != "spiffe://example.org" ||
		root.Subject.SerialNumber != root.SerialNumber.String() || root.NotAfter.Sub(clk.now()) != 24*time.Hour {
		t.Errorf("root: %+v", root)
	}
	leaf := workload(t, c, ca.Request{DNSNames: []string{"b.example.org", "a.example.org"}})
	if leaf.NotBefore != clk.now().Add(-10*time.Second).UTC() || leaf.NotAfter != clk.now().Add(time.Hour).UTC() {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if leaf.Subject.String() != "CN=b.example.org,O=SPIRE,C=US" || !slices.Equal(leaf.DNSNames, []string{"b.example.org", "a.example.org"}) ||
		leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement ||
		!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) ||
		len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://example.org/w" || !slices.Equal(leaf.AuthorityKeyId, root.SubjectKeyId) ||
		leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 128 {
		t.Errorf("leaf: %+v", leaf)
	}
	if long := workload(t, c, ca.Request{TTL: 48 * time.Hour}); long.NotAfter != root.NotAfter {
		t.Errorf("a long SVID ends at %v, want the authority's end %v", long.NotAfter, root.NotAfter)
	}
	if own := workload(t, c, ca.Request{Subject: pkix.Name{Organization: []string{"Mint"}}}); own.Subject.String() != "O=Mint" {
		t.Errorf("subject %s", own.Subject)
	}
	if _, err := c.SignWorkload(ca.Request{ID: spiffeid.RequireFromString("spiffe://other.org/w"), PublicKey: key(t).Public()}); err == nil {
		t.Error("signed for another trust domain")
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, keyFiles(t, dir)[0]: 0o600, keyFiles(t, dir)[2]: 0o600, filepath.Join(dir, "server-id"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, st.Mode(), err, want)
		}
	}
}

func keyFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil || len(files) != 3 {
		t.Fatalf("keys on disk: %q (%v), want one of each kind", files, err)
	}
	return files
}

func TestRotation(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	s, dir := storetest.Open(t), t.TempDir()
	c := open(t, s, dir, clk)
	first, _ := c.Bundle()
	signer := func() string { return string(workload(t, c, ca.Request{}).AuthorityKeyId) }
	step := func(d time.Duration, authorities int, sequence uint64, sameSigner bool) {
		t.Helper()
		clk.advance(d)
		before := signer()
		for range 2 { // a second time changes nothing
			if err := c.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b, _ := c.Bundle()
		if len(b.X509) != authorities || b.Sequence != sequence || (signer() == before) != sameSigner {
			t.Errorf("after %v more: %d authorities, sequence %d, same signer %t; want %d, %d, %t",
				d, len(b.X509), b.Sequence, signer() == before, authorities, sequence, sameSigner)
		}
	}
	step(11*time.Hour, 1, 2, true)
	_, changed := c.Bundle()
	step(2*time.Hour, 2, 5, true) // half life: prepared and published, not used
	select {
	case <-changed:
	default:
		t.Error("the bundle changed and nobody was told")
	}
	step(6*time.Hour, 2, 5, true)
	step(1*time.Hour, 2, 5, false)  // a sixth left: active
	step(10*time.Hour, 3, 8, true)  // the next one's half life
	step(6*time.Hour, 3, 8, false)  // and its activation
	step(12*time.Hour, 4, 11, true) // another, while the first expired a day ago (hour 48)
	step(30*time.Minute, 3, 12, true)
	if b, _ := c.Bundle(); b.X509[0].Cert.Equal(first.X509[0].Cert) {
		t.Error("the first authority is still there a day after its end")
	}
	// A new process signs with the same key.
	before := signer()
	c.Close()
	c = open(t, s, dir, clk)
	if signer() != before {
		t.Error("a restart changed the authority")
	}
	// After a long sleep everything has expired: a new authority takes over at once.
	clk.advance(90 * 24 * time.Hour)
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	workload(t, c, ca.Request{})
	if b, _ := c.Bundle(); len(b.X509) != 1 {
		t.Errorf("%d authorities after a long sleep, want the new one", len(b.X509))
	}
}

func TestTwoServersShareTheBundle(t *testing.T) {
	clk := &clock{t: time.Now()}
	s := storetest.Open(t)
	servers := []*ca.CA{open(t, s, t.TempDir(), clk), open(t, s, t.TempDir(), clk)}
	var wg sync.WaitGroup
	clk.advance(13 * time.Hour) // both prepare at once
	for _, c := range servers {
		wg.Go(func() {
			if err := c.Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	deadline := time.After(5 * time.Second)
	for _, c := range servers {
		for {
			b, changed := c.Bundle()
			if len(b.X509) == 4 && b.Sequence == 11 {
				break
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%d authorities, sequence %d; want 4 and 11", len(b.X509), b.Sequence)
			}
		}
	}
	a, _ := servers[0].Bundle()
	b, _ := servers[1].Bundle()
	if !slices.EqualFunc(a.Roots(), b.Roots(), (*x509.Certificate).Equal) {
		t.Error("the servers show the bundle in different orders")
	}
}

// aged is a store that has not been reachable for a while.
type aged struct {
	*store.Store
	age time.Duration
}

func (a *aged) Age() time.Duration { return a.age }

func TestStale(t *testing.T) {
	s := &aged{Store: storetest.Open(t)}
	c := open(t, s, t.TempDir(), &clock{t: time.Now()})
	s.age = 59 * time.Minute
	workload(t, c, ca.Request{})
	s.age = 61 * time.Minute
	if _, err := c.SignWorkload(ca.Request{ID: spiffeid.RequireFromPath(td, "/w"), PublicKey: key(t).Public()}); !errors.Is(err, ca.ErrStale) {
		t.Errorf("SignWorkload on a replica of 61 minutes = %v", err)
	}
	if _, err := c.SignServer(key(t).Public()); err != nil {
		t.Errorf("the server's own SVID: %v", err)
	}
}

// TestWrongStore: a server that is started on another store keeps its hands off its keys.
func TestWrongStore(t *testing.T) {
	clk := &clock{t: time.Now().Truncate(time.Second)}
	right, wrong, dir := storetest.Open(t), storetest.Open(t), t.TempDir()
	first := open(t, right, dir, clk)
	signer := workload(t, first, ca.Request{}).AuthorityKeyId
	first.Close()
	for range 2 {
		if c, err := ca.Open(t.Context(), ca.Config{Dir: dir, TrustDomain: td, Store: wrong, Now: clk.now}); err == nil {
			c.Close()
			t.Fatal("it began anew with another store")
		} else if !strings.Contains(err.Error(), "the store does not know") {
			t.Fatal(err)
		}
	}
	if again := workload(t, open(t, right, dir, clk), ca.Request{}).AuthorityKeyId; !bytes.Equal(signer, again) {
		t.Errorf("signed by %x after it, by %x before", again, signer)
	}
}

func TestDamagedKeys(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "authorities.json"), []byte(`{"current":{"Certificate":"AA==","Key":""}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(t.Context(), ca.Config{Dir: dir, TrustDomain: td, Store: storetest.Open(t)}); err == nil {
		t.Error("a damaged key file was replaced in silence")
	}
}
