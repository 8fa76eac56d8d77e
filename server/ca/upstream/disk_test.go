// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/upstream"
	"github.com/assay-id/assay/server/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

var td = spiffeid.RequireTrustDomainFromString("example.org")

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// issuer is a CA that somebody else has.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a CA below the parent, or a root for nil.
func issue(t *testing.T, name string, parent *issuer, change func(*x509.Certificate)) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	signer := &issuer{template, key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key.Public(), signer.key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return &issuer{cert, key}
}

func write(t *testing.T, path string, blocks ...*pem.Block) string {
	t.Helper()
	var data []byte
	for _, b := range blocks {
		data = append(data, pem.EncodeToMemory(b)...)
	}
	check(t, os.WriteFile(path, data, 0o600))
	return path
}

func certs(of ...*issuer) (blocks []*pem.Block) {
	for _, i := range of {
		blocks = append(blocks, &pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
	}
	return blocks
}

func (i *issuer) private(t *testing.T) *pem.Block {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	check(t, err)
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}
}

func disk(t *testing.T, dir string, roots *issuer, chain ...*issuer) *upstream.Disk {
	t.Helper()
	d := &upstream.Disk{
		TrustDomain: td, Now: time.Now, CertPath: write(t, filepath.Join(dir, "ca.pem"), certs(chain...)...),
		KeyPath: write(t, filepath.Join(dir, "key.pem"), chain[0].private(t)),
	}
	if roots != nil {
		d.BundlePath = write(t, filepath.Join(dir, "roots.pem"), certs(roots)...)
	}
	return d
}

func open(t *testing.T, up ca.Upstream) *ca.CA {
	t.Helper()
	c, err := ca.Open(t.Context(), ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: storetest.Open(t), Upstream: up})
	check(t, err)
	t.Cleanup(c.Close)
	return c
}

// sign signs an SVID and verifies it by the bundle as a peer does.
func sign(t *testing.T, c *ca.CA) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	chain, err := c.SignWorkload(ca.Request{ID: spiffeid.RequireFromPath(td, "/w"), PublicKey: key.Public()})
	check(t, err)
	b, _ := c.Bundle()
	_, _, err = x509svid.Verify(chain, x509bundle.FromX509Authorities(td, b.Roots()))
	check(t, err)
	return chain
}

// TestDisk: a root, or an intermediate with its root; chains hold all but the root.
func TestDisk(t *testing.T) {
	root := issue(t, "root", nil, nil)
	middle := issue(t, "middle", root, nil)
	for name, test := range map[string]struct {
		disk  *upstream.Disk
		chain int
	}{"root": {disk(t, t.TempDir(), nil, root), 2}, "intermediate": {disk(t, t.TempDir(), root, middle), 3}} {
		c := open(t, test.disk)
		chain := sign(t, c)
		b, _ := c.Bundle()
		state, err := c.State(ca.X509)
		check(t, err)
		if len(chain) != test.chain || len(b.X509) != 1 || !b.X509[0].Cert.Equal(root.cert) ||
			state.Active.ID != hex.EncodeToString(chain[1].SubjectKeyId) || state.Active.UpstreamID != hex.EncodeToString(root.cert.SubjectKeyId) {
			t.Errorf("%s: chain of %d, %d roots, state %+v", name, len(chain), len(b.X509), state.Active)
		}
		if own := chain[1]; own.Subject.Organization[0] != "SPIFFE" || own.URIs[0].String() != "spiffe://example.org" || !own.IsCA || own.MaxPathLen != -1 || len(own.AuthorityKeyId) == 0 {
			t.Errorf("%s: our certificate %+v", name, own)
		}
		down, err := c.SignDownstream(ca.DownstreamRequest{PublicKey: chain[0].PublicKey, TTL: 9000 * time.Hour})
		check(t, err)
		if len(down) != test.chain || !down[0].NotAfter.Equal(chain[1].NotAfter) || down[0].Subject.OrganizationalUnit[0] != map[int]string{2: "DOWNSTREAM-1", 3: "DOWNSTREAM-2"}[test.chain] {
			t.Errorf("%s: downstream chain of %d, until %v, %v", name, len(down), down[0].NotAfter, down[0].Subject)
		}
	}
}

// TestReplaced: new files are used from the next authority on; then the former root can go.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	first, second := issue(t, "first", nil, nil), issue(t, "second", nil, nil)
	c := open(t, disk(t, dir, nil, first))
	ctx := t.Context()
	id := func(i *issuer) string { return hex.EncodeToString(i.cert.SubjectKeyId) }
	if err := c.TaintUpstream(ctx, id(first)); !errors.Is(err, ca.ErrInvalid) {
		t.Errorf("TaintUpstream of the active one's = %v", err)
	}
	disk(t, dir, nil, second)
	next, err := c.Prepare(ctx, ca.X509)
	check(t, err)
	_, err = c.Activate(ctx, ca.X509, next.ID)
	check(t, err)
	if chain := sign(t, c); next.UpstreamID != id(second) || chain[1].CheckSignatureFrom(second.cert) != nil {
		t.Errorf("the new files are not used: %+v", next)
	}
	state, err := c.State(ca.X509)
	check(t, err)
	if _, err := c.Taint(ctx, ca.X509, state.Old.ID); !errors.Is(err, ca.ErrPrecondition) {
		t.Errorf("Taint of an authority below an upstream = %v", err)
	}
	if err := c.RevokeUpstream(ctx, id(first)); err == nil {
		t.Error("revoked what is not tainted")
	}
	check(t, c.TaintUpstream(ctx, id(first)))
	if b, _ := c.Bundle(); !b.X509[0].Tainted || b.X509[1].Tainted {
		t.Errorf("after TaintUpstream: %+v", b.X509)
	}
	check(t, c.RevokeUpstream(ctx, id(first)))
	if b, _ := c.Bundle(); len(b.X509) != 1 || !b.X509[0].Cert.Equal(second.cert) {
		t.Errorf("after RevokeUpstream: %d roots", len(b.X509))
	}
	sign(t, c)
}

// TestRefused: what can not sign SVIDs that peers accept is refused before anybody sees it.
func TestRefused(t *testing.T) {
	root := issue(t, "root", nil, nil)
	for name, d := range map[string]*upstream.Disk{
		"no CA":            disk(t, t.TempDir(), nil, issue(t, "x", nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })),
		"expired":          disk(t, t.TempDir(), nil, issue(t, "x", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })),
		"no path below":    disk(t, t.TempDir(), nil, issue(t, "x", nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })),
		"another's names":  disk(t, t.TempDir(), nil, issue(t, "x", nil, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.org"} })),
		"no root":          disk(t, t.TempDir(), nil, issue(t, "x", root, nil)),
		"another's root":   disk(t, t.TempDir(), issue(t, "y", nil, nil), issue(t, "x", root, nil)),
		"no such file":     {TrustDomain: td, Now: time.Now, CertPath: "/none", KeyPath: "/none"},
		"another's key":    {TrustDomain: td, Now: time.Now, CertPath: write(t, filepath.Join(t.TempDir(), "c"), certs(root)...), KeyPath: write(t, filepath.Join(t.TempDir(), "k"), issue(t, "x", nil, nil).private(t))},
		"no roots in file": {TrustDomain: td, Now: time.Now, CertPath: write(t, filepath.Join(t.TempDir(), "c"), certs(root)...), KeyPath: write(t, filepath.Join(t.TempDir(), "k"), root.private(t)), BundlePath: write(t, filepath.Join(t.TempDir(), "b"), root.private(t))},
	} {
		s := storetest.Open(t)
		if c, err := ca.Open(t.Context(), ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: s, Upstream: d}); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
		if kvs, _, err := s.Snapshot(t.Context(), "b/x509/"); err != nil || len(kvs) != 0 {
			t.Errorf("%s: %d roots were published (%v)", name, len(kvs), err)
		}
		s.Close()
	}
}

// nested is an upstream that pushes its bundle and wants our keys, as another server does.
type nested struct {
	*upstream.Disk
	updates   chan bundle.Trusted
	published []bundle.KeyAuthority
}

func (n *nested) Watch(context.Context) <-chan bundle.Trusted { return n.updates }

func (n *nested) Publish(_ context.Context, k bundle.Kind, a bundle.KeyAuthority) ([]bundle.KeyAuthority, error) {
	if k != bundle.JWT {
		return nil, errors.ErrUnsupported
	}
	n.published = append(n.published, a)
	return n.published, nil
}

// TestFollows: a root that the upstream taints is left before it is tainted here, and one that it
// drops is revoked.
func TestFollows(t *testing.T) {
	dir := t.TempDir()
	first, second := issue(t, "first", nil, nil), issue(t, "second", nil, nil)
	n := &nested{Disk: disk(t, dir, nil, first), updates: make(chan bundle.Trusted)}
	c := open(t, n)
	b, _ := c.Bundle()
	if len(n.published) != 1 || n.published[0].ID != b.JWT[0].ID {
		t.Errorf("the upstream was told of %+v", n.published)
	}
	until := func(what string, ok func(ca.Bundle) bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			b, changed := c.Bundle()
			if ok(b) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("waited for %s: %+v", what, b.X509)
			}
		}
	}
	disk(t, dir, nil, second)
	n.updates <- bundle.Trusted{X509: []bundle.X509Authority{{Cert: first.cert, Tainted: true}, {Cert: second.cert}}}
	until("the taint", func(b ca.Bundle) bool { return len(b.X509) == 2 && b.X509[0].Tainted && !b.X509[1].Tainted })
	if chain := sign(t, c); chain[1].CheckSignatureFrom(second.cert) != nil {
		t.Error("the first root was tainted here while SVIDs were still signed below it")
	}
	n.updates <- bundle.Trusted{X509: []bundle.X509Authority{{Cert: second.cert}}}
	until("the revocation", func(b ca.Bundle) bool { return len(b.X509) == 1 && b.X509[0].Cert.Equal(second.cert) })
	sign(t, c)
}
