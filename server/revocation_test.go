// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	revocationv1 "github.com/assay-id/assay/proto/revocation"
	"github.com/assay-id/assay/server"
)

func (c *clients) revocation() revocationv1.RevocationClient {
	return revocationv1.NewRevocationClient(c.conn)
}

// leafOf is the certificate of an SVID.
func leafOf(t *testing.T, svid *types.X509SVID) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(svid.CertChain[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// listed reports whether one of the lists has the certificate.
func listed(t *testing.T, lists [][]byte, leaf *x509.Certificate) bool {
	t.Helper()
	for _, der := range lists {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 && string(l.AuthorityKeyId) == string(leaf.AuthorityKeyId) {
				return true
			}
		}
	}
	return false
}

func (e *env) lists() (out [][]byte) {
	e.t.Helper()
	resp, err := e.admin.revocation().ListCRLs(e.t.Context(), &revocationv1.ListCRLsRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	for _, l := range resp.Crls {
		out = append(out, l.Der)
	}
	return out
}

func (e *env) revoke(req *revocationv1.RevokeRequest, want int32) {
	e.t.Helper()
	resp, err := e.admin.revocation().Revoke(e.t.Context(), req)
	if err != nil || resp.Revoked != want || len(resp.Waiting)+len(resp.Failed) > 0 {
		e.t.Errorf("Revoke(%v) = %v, %v; want %d", req, resp, err, want)
	}
}

// TestRevocation: what an operator revokes is in a list that the agents' feeds bring; a restart changes nothing.
func TestRevocation(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	es := e.create(
		&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")},
		&types.Entry{ParentId: a.id, SpiffeId: sid("/v"), Selectors: sel("unix", "uid:0")},
	)
	w, v := leafOf(t, e.sign(a, es[0].Id, newKey(t))), leafOf(t, e.sign(a, es[1].Id, newKey(t)))
	feed := a.watch(t.Context(), t, &nodev1.WatchRequest{})
	first, err := feed.Recv()
	if err != nil || first.Revocations == nil || len(first.Revocations.Crls) != 0 {
		t.Fatalf("the first message: %v, %v", first.GetRevocations(), err)
	}
	began := time.Now()
	e.revoke(&revocationv1.RevokeRequest{EntryId: es[0].Id, Reason: 1, Why: "stolen"}, 1)
	answered := time.Since(began)
	for {
		m, err := feed.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.Revocations == nil {
			continue
		}
		if !listed(t, m.Revocations.Crls, w) || listed(t, m.Revocations.Crls, v) {
			t.Error("the feed brought another list")
		}
		break
	}
	t.Logf("revoked and answered after %v, in the feed after %v", answered, time.Since(began))
	check := func(e *env) {
		t.Helper()
		got, err := e.admin.revocation().ListRevoked(t.Context(), &revocationv1.ListRevokedRequest{})
		if err != nil || len(got.Revoked) != 1 {
			t.Fatalf("ListRevoked = %v, %v", got, err)
		}
		r := got.Revoked[0]
		if r.Serial != w.SerialNumber.String() || r.SpiffeId != "spiffe://example.org/w" || r.EntryId != es[0].Id || r.NodeId != "spiffe://example.org"+a.id.Path ||
			r.Reason != 1 || r.Why != "stolen" || !strings.HasPrefix(r.By, "operator ") || !r.Listed || r.ExpiresAt != w.NotAfter.Unix() {
			t.Errorf("ListRevoked = %v", r)
		}
		if !listed(t, e.lists(), w) {
			t.Error("not in the list")
		}
	}
	check(e)
	e.stop()
	e = run(t, e.conf)
	check(e)
	e.revoke(&revocationv1.RevokeRequest{SpiffeId: "spiffe://example.org/v"}, 1) // signed by the run before
	if !listed(t, e.lists(), v) {
		t.Error("what the former run signed is not in the list")
	}
	minted, err := e.admin.svid.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: newCSR(t, newKey(t), &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/minted"}}})})
	if err != nil {
		t.Fatal(err)
	}
	e.revoke(&revocationv1.RevokeRequest{Certificates: minted.Svid.CertChain}, 1)
	if !listed(t, e.lists(), leafOf(t, minted.Svid)) {
		t.Error("a certificate that was given is not in the list")
	}
	foreign := start(t, nil).newAgent()
	for what, req := range map[string]*revocationv1.RevokeRequest{
		"nothing": {}, "only an authority": {AuthorityId: "ab"}, "both": {Certificates: minted.Svid.CertChain, Serial: "1"},
		"of another trust domain's authority": {Certificates: foreign.cert.Certificate}, "no certificate": {Certificates: [][]byte{{1}}},
		"a digest": {Sha256: "zz"}, "a reason": {Serial: "5", Reason: 8}, "a long reason": {Serial: "5", Why: strings.Repeat("x", 501)},
	} {
		_, err := e.admin.revocation().Revoke(t.Context(), req)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err = e.agentOfSame(a).revocation().ListRevoked(t.Context(), &revocationv1.ListRevokedRequest{})
	wantCode(t, "an agent lists", err, codes.PermissionDenied)
}

// agentOfSame is an agent's connection to a server that was started again.
func (e *env) agentOfSame(a *agent) *clients { return e.dial(a.cert) }

// TestAgentRevokes: an agent gives back what was signed for it, and can do nothing to what others have.
func TestAgentRevokes(t *testing.T) {
	e := start(t, nil)
	a, thief := e.newAgent(), e.newAgent()
	entry := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	leaf := leafOf(t, e.sign(a, entry.Id, newKey(t)))
	for what, cert := range map[string][]byte{"another node's": leaf.Raw, "another agent's own": a.leaf().Raw, "its own": thief.leaf().Raw} {
		_, err := thief.node.RevokeSVID(t.Context(), &nodev1.RevokeSVIDRequest{Certificate: cert, Reason: 1})
		wantCode(t, what, err, codes.PermissionDenied)
	}
	// A certificate that he made, with the victim's serial number and authority.
	key := newKey(t)
	forged, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: leaf.SerialNumber, AuthorityKeyId: leaf.AuthorityKeyId, NotAfter: leaf.NotAfter},
		&x509.Certificate{SerialNumber: big.NewInt(1), SubjectKeyId: leaf.AuthorityKeyId}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = thief.node.RevokeSVID(t.Context(), &nodev1.RevokeSVIDRequest{Certificate: forged})
	wantCode(t, "forged", err, codes.PermissionDenied)
	for what, req := range map[string]*nodev1.RevokeSVIDRequest{"nothing": {}, "a reason": {Certificate: leaf.Raw, Reason: 8}, "long": {Certificate: leaf.Raw, Why: strings.Repeat("x", 501)}} {
		_, err = a.node.RevokeSVID(t.Context(), req)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	if listed(t, e.lists(), leaf) {
		t.Fatal("another agent had it revoked")
	}
	if _, err := a.node.RevokeSVID(t.Context(), &nodev1.RevokeSVIDRequest{Certificate: leaf.Raw, Reason: 1, Why: "ptrace"}); err != nil {
		t.Fatal(err)
	}
	if !listed(t, e.lists(), leaf) {
		t.Error("not in the list")
	}
	_, err = e.admin.node.RevokeSVID(t.Context(), &nodev1.RevokeSVIDRequest{Certificate: leaf.Raw})
	wantCode(t, "over the socket", err, codes.PermissionDenied)
}

// TestSuspensionRevokes: what the workloads of a suspended or banned node have is revoked, by whichever server signed it.
func TestSuspensionRevokes(t *testing.T) {
	one := start(t, nil)
	two := start(t, func(c *server.Config) {
		c.Store = &server.StoreConfig{Endpoints: []string{"unix://" + filepath.Join(one.conf.DataDir, "store", "run", "client.sock")}}
	})
	waitFor(t, "one bundle at both", func() bool {
		b, err := one.admin.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
		if err == nil {
			one.bundle = bundleOf(t, b)
		}
		return err == nil && len(b.X509Authorities) == 2
	})
	a, b := one.newAgent(), one.newAgent()
	es := one.create(
		&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")},
		&types.Entry{ParentId: b.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")},
	)
	atTwo := &agent{a.id, a.cert, two.dial(a.cert)}
	waitFor(t, "the entries at the other server", func() bool {
		got, err := atTwo.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
		return err == nil && len(got.Entries) == 1
	})
	byOne, byTwo, others := leafOf(t, one.sign(a, es[0].Id, newKey(t))), leafOf(t, two.sign(atTwo, es[0].Id, newKey(t))), leafOf(t, one.sign(b, es[1].Id, newKey(t)))
	id := "spiffe://example.org" + a.id.Path
	if _, err := two.admin.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: id, Reason: "drift"}); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*env{"one": one, "two": two} {
		waitFor(t, "the lists at "+name, func() bool { return listed(t, e.lists(), byOne) && listed(t, e.lists(), byTwo) })
		if listed(t, e.lists(), others) || listed(t, e.lists(), a.leaf()) {
			t.Errorf("%s: more is revoked", name)
		}
	}
	// The node comes back with its own SVID, and gets new ones for its workloads.
	if _, err := one.admin.nodes.Readmit(t.Context(), &adminv1.ReadmitRequest{SpiffeId: id}); err != nil {
		t.Fatal(err)
	}
	again := leafOf(t, one.sign(a, es[0].Id, newKey(t)))
	one.revoke(&revocationv1.RevokeRequest{Serial: "1"}, 0)
	if listed(t, one.lists(), again) {
		t.Error("what the readmitted node got is revoked")
	}
	// Banned while another server is away.
	two.stop()
	if _, err := one.admin.nodes.Ban(t.Context(), &adminv1.BanRequest{SpiffeId: "spiffe://example.org" + b.id.Path}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the list after the ban", func() bool { return listed(t, one.lists(), others) })
}

func TestSuspensionThatRevokesNothing(t *testing.T) {
	no := false
	e := start(t, func(c *server.Config) { c.Revocation = &server.RevocationConfig{OnSuspend: &no} })
	a := e.newAgent()
	entry := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	leaf := leafOf(t, e.sign(a, entry.Id, newKey(t)))
	if _, err := e.admin.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: "spiffe://example.org" + a.id.Path}); err != nil {
		t.Fatal(err)
	}
	e.revoke(&revocationv1.RevokeRequest{Serial: "1"}, 0) // a turn of whoever would
	if listed(t, e.lists(), leaf) {
		t.Error("revoked, though on_suspend is false")
	}
	e.revoke(&revocationv1.RevokeRequest{NodeId: "spiffe://example.org" + a.id.Path}, 1)
}

// TestRevokedCallers: the server itself turns away who holds a revoked SVID, on open connections too.
func TestRevokedCallers(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	stream := a.watch(t.Context(), t, &nodev1.WatchRequest{})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/admin"), Selectors: sel("unix", "uid:0"), Admin: true})
	key := newKey(t)
	minted, err := e.admin.svid.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: newCSR(t, key, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/admin"}}})})
	if err != nil {
		t.Fatal(err)
	}
	admin := e.agentOf(minted.Svid, key)
	if _, err := admin.revocation().ListRevoked(t.Context(), &revocationv1.ListRevokedRequest{}); err != nil {
		t.Fatal(err)
	}
	e.revoke(&revocationv1.RevokeRequest{SpiffeId: "spiffe://example.org/admin"}, 1)
	_, err = admin.revocation().ListRevoked(t.Context(), &revocationv1.ListRevokedRequest{})
	wantCode(t, "a revoked admin", err, codes.PermissionDenied)

	e.revoke(&revocationv1.RevokeRequest{SpiffeId: "spiffe://example.org" + a.id.Path}, 1)
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	wantCode(t, "the agent's stream", err, codes.Aborted)
	_, err = a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, "a revoked agent", err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
}

// TestCRLEndpoint: SVIDs name where their list is, and it is there for anyone, also before anything is revoked.
func TestCRLEndpoint(t *testing.T) {
	port := freePort(t)
	e := start(t, func(c *server.Config) {
		c.Revocation = &server.RevocationConfig{CRLTTL: "30m", CRLEndpoint: &server.CRLEndpointConfig{Address: "127.0.0.1", Port: port, URL: fmt.Sprintf("http://127.0.0.1:%d/", port)}}
	})
	leaf := e.newAgent().leaf()
	if len(leaf.CRLDistributionPoints) != 1 {
		t.Fatalf("distribution points %q", leaf.CRLDistributionPoints)
	}
	resp, err := http.Get(leaf.CRLDistributionPoints[0])
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/pkix-crl" {
		t.Fatalf("%v %v, %v", resp.Status, resp.Header, err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || len(list.RevokedCertificateEntries) != 0 || time.Until(list.NextUpdate) > 30*time.Minute {
		t.Fatalf("the list: %v, %v", list, err)
	}
	if err := list.CheckSignatureFrom(e.bundle.X509Authorities()[0]); err != nil {
		t.Error(err)
	}
	prepared, err := e.admin.local.PrepareX509Authority(t.Context(), &authorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the list of an authority that does not sign yet", func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/%s.crl", port, prepared.PreparedAuthority.AuthorityId))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Body.Close() == nil && resp.StatusCode == 200
	})
}

func TestRevocationConfig(t *testing.T) {
	for want, c := range map[string]server.RevocationConfig{
		"crl_ttl": {CRLTTL: "1s"}, "write a port": {CRLEndpoint: &server.CRLEndpointConfig{URL: "http://x"}},
		"begins with http://": {CRLEndpoint: &server.CRLEndpointConfig{Port: 1, URL: "https://x"}}, "has no query": {CRLEndpoint: &server.CRLEndpointConfig{Port: 1, URL: "http://x/?y"}},
	} {
		conf := server.Config{TrustDomain: "example.org", DataDir: "/x", SocketPath: "/x/s", JoinToken: &server.JoinTokenConfig{}, Revocation: &c}
		if err := conf.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
