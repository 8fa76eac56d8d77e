// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/assay-id/assay/proto/node"
)

// foreignCA is an authority of another trust domain.
type foreignCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newForeignCA(t *testing.T, name string) *foreignCA {
	t.Helper()
	key := newKey(t)
	uri, _ := url.Parse("spiffe://" + name)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &foreignCA{cert, key}
}

func foreignBundle(t *testing.T, name string) *types.Bundle {
	t.Helper()
	return &types.Bundle{TrustDomain: name, SequenceNumber: 7, RefreshHint: 60, X509Authorities: []*types.X509Certificate{{Asn1: newForeignCA(t, name).cert.Raw}},
		JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: pkixOf(t, newKey(t)), ExpiresAt: 2_000_000_000}}}
}

func wantStatus(t *testing.T, what string, st *types.Status, code codes.Code, text string) {
	t.Helper()
	if st == nil || codes.Code(st.Code) != code || !strings.HasPrefix(st.Message, text) {
		t.Errorf("%s: %v, want %s %q", what, st, code, text)
	}
}

// TestDownstream: a nested server has its CA signed and publishes its keys.
func TestDownstream(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/below"), Selectors: sel("unix", "uid:0"), Downstream: true})[0]
	key := newKey(t)
	below := e.agentOf(e.sign(a, w.Id, key), key)
	caKey := newKey(t)
	uri, _ := url.Parse("spiffe://example.org/ignored")
	resp, err := below.svid.NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{Csr: newCSR(t, caKey, &x509.CertificateRequest{URIs: []*url.URL{uri}}), PreferredTtl: 3600})
	if err != nil || len(resp.CaCertChain) != 1 || len(resp.X509Authorities) != 1 {
		t.Fatalf("NewDownstreamX509CA = %v, %v", resp, err)
	}
	ca, err := x509.ParseCertificate(resp.CaCertChain[0])
	if err != nil || len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://example.org" || !ca.IsCA || ca.MaxPathLen > 0 || ca.MaxPathLenZero || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("the CA: %v, %v", ca, err)
	}
	root, err := x509.ParseCertificate(resp.X509Authorities[0])
	if err != nil || ca.CheckSignatureFrom(root) != nil || ca.NotAfter.Sub(ca.NotBefore) > time.Hour+time.Minute {
		t.Errorf("the CA is not below the root, or for %v: %v", ca.NotAfter.Sub(ca.NotBefore), err)
	}
	_, err = below.svid.NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{})
	wantCode(t, "no CSR", err, codes.InvalidArgument)
	_, err = e.admin.svid.NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{})
	wantDenied(t, "an operator as nested server", err)

	public := pkixOf(t, newKey(t))
	jwts, err := below.bundle.PublishJWTAuthority(t.Context(), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: &types.JWTKey{KeyId: "j1", PublicKey: public, ExpiresAt: 2_000_000_000, Tainted: true}})
	if err != nil || len(jwts.JwtAuthorities) != 2 || jwts.JwtAuthorities[1].KeyId != "j1" || jwts.JwtAuthorities[1].Tainted || jwts.JwtAuthorities[1].ExpiresAt != 2_000_000_000 {
		t.Errorf("PublishJWTAuthority = %v, %v", jwts, err)
	}
	wits, err := below.bundle.PublishWITAuthority(t.Context(), &bundlev1.PublishWITAuthorityRequest{WitAuthority: &types.WITKey{KeyId: "w1", PublicKey: public}})
	if err != nil || len(wits.WitAuthorities) != 2 || wits.WitAuthorities[1].KeyId != "w1" {
		t.Errorf("PublishWITAuthority = %v, %v", wits, err)
	}
	for what, k := range map[string]*types.JWTKey{"nothing": nil, "no key ID": {PublicKey: public}, "no key": {KeyId: "x"}, "another key of that ID": {KeyId: "j1", PublicKey: pkixOf(t, newKey(t))}, "a WIT authority's ID": {KeyId: "w1", PublicKey: public}} {
		_, err := below.bundle.PublishJWTAuthority(t.Context(), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: k})
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err = below.bundle.PublishWITAuthority(t.Context(), &bundlev1.PublishWITAuthorityRequest{})
	wantCode(t, "no WIT authority", err, codes.InvalidArgument)
}

// TestAppendBundle: others' authorities join ours; each change raises the sequence number by one (B-3).
func TestAppendBundle(t *testing.T) {
	e := start(t, nil)
	before, other := e.ownBundle(), newForeignCA(t, "example.org")
	req := &bundlev1.AppendBundleRequest{X509Authorities: []*types.X509Certificate{{Asn1: other.cert.Raw, Tainted: true}}, JwtAuthorities: []*types.JWTKey{{KeyId: "old", PublicKey: pkixOf(t, newKey(t))}}}
	after, err := e.admin.bundle.AppendBundle(t.Context(), req)
	if err != nil || len(after.X509Authorities) != 2 || after.X509Authorities[1].Tainted || len(after.JwtAuthorities) != 2 || after.SequenceNumber != before.SequenceNumber+1 {
		t.Fatalf("AppendBundle = %v, %v", after, err)
	}
	again, err := e.admin.bundle.AppendBundle(t.Context(), req)
	if err != nil || !proto.Equal(again, after) {
		t.Errorf("the same once more: %v, %v", again, err)
	}
	req.OutputMask = &types.BundleMask{SequenceNumber: true}
	if masked, err := e.admin.bundle.AppendBundle(t.Context(), req); err != nil || !proto.Equal(masked, &types.Bundle{TrustDomain: "example.org", SequenceNumber: after.SequenceNumber}) {
		t.Errorf("masked: %v, %v", masked, err)
	}
	for what, req := range map[string]*bundlev1.AppendBundleRequest{
		"nothing": {}, "no certificate": {X509Authorities: []*types.X509Certificate{{}}}, "no key": {JwtAuthorities: []*types.JWTKey{{KeyId: "x"}}},
		"a WIT authority": {WitAuthorities: []*types.WITKey{{KeyId: "x", PublicKey: req.JwtAuthorities[0].PublicKey}}},
	} {
		_, err := e.admin.bundle.AppendBundle(t.Context(), req)
		wantCode(t, what, err, codes.InvalidArgument)
	}
}

// TestFederatedBundles: create, update, set, delete, with masks and SPIRE's texts.
func TestFederatedBundles(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	one, two := foreignBundle(t, "one.org"), foreignBundle(t, "two.org")
	create := func(bs ...*types.Bundle) []*bundlev1.BatchCreateFederatedBundleResponse_Result {
		t.Helper()
		resp, err := e.admin.bundle.BatchCreateFederatedBundle(t.Context(), &bundlev1.BatchCreateFederatedBundleRequest{Bundle: bs})
		if err != nil || len(resp.Results) != len(bs) {
			t.Fatal(resp, err)
		}
		return resp.Results
	}
	named := proto.Clone(two).(*types.Bundle)
	named.TrustDomain = "spiffe://two.org/path"
	results := create(one, named, one, &types.Bundle{TrustDomain: "example.org"}, &types.Bundle{TrustDomain: "Not A Name"}, &types.Bundle{TrustDomain: "x.org", X509Authorities: []*types.X509Certificate{{Asn1: []byte("x")}}}, nil)
	for i, want := range []struct {
		code codes.Code
		text string
	}{
		{codes.OK, "OK"}, {codes.OK, "OK"}, {codes.AlreadyExists, "bundle already exists"}, {codes.InvalidArgument, "creating a federated bundle for the server's own trust domain is not allowed"},
		{codes.InvalidArgument, "trust domain argument is not valid"}, {codes.InvalidArgument, "failed to convert bundle"}, {codes.InvalidArgument, "trust domain argument is not valid"},
	} {
		wantStatus(t, "create "+results[i].String(), results[i].Status, want.code, want.text)
		if (results[i].Bundle != nil) != (want.code == codes.OK) {
			t.Errorf("item %d: %v", i, results[i])
		}
	}
	got, err := a.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "two.org"})
	if err != nil || !proto.Equal(got, two) {
		t.Errorf("GetFederatedBundle = %v, %v", got, err)
	}
	if n, err := e.admin.bundle.CountBundles(t.Context(), &bundlev1.CountBundlesRequest{}); err != nil || n.Count != 3 {
		t.Errorf("CountBundles = %v, %v", n, err)
	}
	var listed []string
	for token := ""; ; {
		page, err := e.admin.bundle.ListFederatedBundles(t.Context(), &bundlev1.ListFederatedBundlesRequest{PageSize: 1, PageToken: token, OutputMask: &types.BundleMask{}})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Bundles {
			if len(b.X509Authorities) > 0 {
				t.Errorf("not masked: %v", b)
			}
			listed = append(listed, b.TrustDomain)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if !slices.Equal(listed, []string{"one.org", "two.org"}) {
		t.Errorf("listed %v", listed)
	}
	changed := proto.Clone(one).(*types.Bundle)
	changed.RefreshHint, changed.SequenceNumber, changed.X509Authorities = 99, 8, nil
	up, err := e.admin.bundle.BatchUpdateFederatedBundle(t.Context(), &bundlev1.BatchUpdateFederatedBundleRequest{Bundle: []*types.Bundle{changed, {TrustDomain: "three.org"}, {TrustDomain: "example.org"}},
		InputMask: &types.BundleMask{RefreshHint: true}})
	if err != nil || up.Results[0].Bundle.GetRefreshHint() != 99 || up.Results[0].Bundle.SequenceNumber != 7 || len(up.Results[0].Bundle.X509Authorities) != 1 {
		t.Errorf("update: %v, %v", up, err)
	}
	wantStatus(t, "update a missing one", up.Results[1].Status, codes.NotFound, "bundle not found")
	wantStatus(t, "update our own", up.Results[2].Status, codes.InvalidArgument, "updating a federated bundle for the server's own trust domain is not allowed")
	set, err := e.admin.bundle.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{changed, foreignBundle(t, "three.org")}, OutputMask: &types.BundleMask{SequenceNumber: true}})
	if err != nil || set.Results[0].Bundle.SequenceNumber != 8 || set.Results[1].Bundle.SequenceNumber != 7 || len(set.Results[1].Bundle.JwtAuthorities) != 0 {
		t.Errorf("set: %v, %v", set, err)
	}

	linked := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0"), FederatesWith: []string{"one.org", "two.org"}})[0]
	remove := func(mode bundlev1.BatchDeleteFederatedBundleRequest_Mode, tds ...string) []*bundlev1.BatchDeleteFederatedBundleResponse_Result {
		t.Helper()
		resp, err := e.admin.bundle.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: tds, Mode: mode})
		if err != nil || len(resp.Results) != len(tds) {
			t.Fatal(resp, err)
		}
		return resp.Results
	}
	gone := remove(bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT, "one.org", "three.org", "four.org", "example.org")
	wantStatus(t, "restrict", gone[0].Status, codes.FailedPrecondition, "failed to delete federated bundle")
	wantStatus(t, "one that nobody federates with", gone[1].Status, codes.OK, "OK")
	wantStatus(t, "a missing one", gone[2].Status, codes.NotFound, "bundle not found")
	wantStatus(t, "our own", gone[3].Status, codes.InvalidArgument, "removing the bundle for the server trust domain is not allowed")
	wantStatus(t, "dissociate", remove(bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE, "one.org")[0].Status, codes.OK, "OK")
	now, err := e.admin.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: linked.Id})
	if err != nil || !slices.Equal(now.FederatesWith, []string{"two.org"}) || now.RevisionNumber <= linked.RevisionNumber {
		t.Errorf("the entry after DISSOCIATE: %v, %v", now, err)
	}
	wantStatus(t, "delete", remove(bundlev1.BatchDeleteFederatedBundleRequest_DELETE, "two.org")[0].Status, codes.OK, "OK")
	_, err = e.admin.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: linked.Id})
	wantCode(t, "the entry after DELETE", err, codes.NotFound)
	_, err = e.admin.bundle.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{Mode: 9})
	wantCode(t, "an unknown mode", err, codes.InvalidArgument)
	_, err = a.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "example.org"})
	wantCode(t, "our own", err, codes.InvalidArgument)
}

// TestFederationRelationships: create, update, list, delete, refresh.
func TestFederationRelationships(t *testing.T) {
	e := start(t, nil)
	web := &types.FederationRelationship{TrustDomain: "web.org", BundleEndpointUrl: "https://127.0.0.1:1/bundle", BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}}
	peer := &types.FederationRelationship{TrustDomain: "peer.org", BundleEndpointUrl: "https://127.0.0.1:1", TrustDomainBundle: foreignBundle(t, "peer.org"),
		BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://peer.org/server"}}}
	with := func(change func(*types.FederationRelationship)) *types.FederationRelationship {
		r := proto.Clone(web).(*types.FederationRelationship)
		r.TrustDomain = "x.org"
		change(r)
		return r
	}
	resp, err := e.admin.trust.BatchCreateFederationRelationship(t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: []*types.FederationRelationship{
		web, peer, web,
		with(func(r *types.FederationRelationship) { r.TrustDomain = "example.org" }),
		with(func(r *types.FederationRelationship) { r.BundleEndpointUrl = "http://x.org" }),
		with(func(r *types.FederationRelationship) { r.BundleEndpointUrl = "https://me:secret@x.org" }),
		with(func(r *types.FederationRelationship) { r.BundleEndpointProfile = nil }),
		with(func(r *types.FederationRelationship) {
			r.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "x"}}
		}),
		with(func(r *types.FederationRelationship) { r.TrustDomainBundle = foreignBundle(t, "other.org") }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.AlreadyExists, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument} {
		if r := resp.Results[i]; codes.Code(r.Status.Code) != want || (r.FederationRelationship != nil) != (want == codes.OK) {
			t.Errorf("item %d: %v, want %s", i, r, want)
		}
	}
	if !proto.Equal(resp.Results[0].FederationRelationship, web) || !proto.Equal(resp.Results[1].FederationRelationship, peer) {
		t.Errorf("created %v", resp.Results[:2])
	}
	list, err := e.admin.trust.ListFederationRelationships(t.Context(), &trustdomainv1.ListFederationRelationshipsRequest{})
	if err != nil || len(list.FederationRelationships) != 2 || list.FederationRelationships[1].GetHttpsWeb() == nil {
		t.Errorf("ListFederationRelationships = %v, %v", list, err)
	}
	masked, err := e.admin.trust.GetFederationRelationship(t.Context(), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "peer.org", OutputMask: &types.FederationRelationshipMask{BundleEndpointUrl: true}})
	if err != nil || !proto.Equal(masked, &types.FederationRelationship{TrustDomain: "peer.org", BundleEndpointUrl: "https://127.0.0.1:1"}) {
		t.Errorf("masked: %v, %v", masked, err)
	}
	_, err = e.admin.trust.GetFederationRelationship(t.Context(), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "none.org"})
	wantCode(t, "a missing one", err, codes.NotFound)
	up, err := e.admin.trust.BatchUpdateFederationRelationship(t.Context(), &trustdomainv1.BatchUpdateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{TrustDomain: "peer.org", BundleEndpointUrl: "https://127.0.0.1:2"}, {TrustDomain: "none.org", BundleEndpointUrl: "https://127.0.0.1:2"}},
		InputMask:               &types.FederationRelationshipMask{BundleEndpointUrl: true},
	})
	if err != nil || up.Results[0].FederationRelationship.GetBundleEndpointUrl() != "https://127.0.0.1:2" || up.Results[0].FederationRelationship.GetHttpsSpiffe() == nil {
		t.Errorf("update: %v, %v", up, err)
	}
	wantStatus(t, "update a missing one", up.Results[1].Status, codes.NotFound, "federation relationship not found")
	_, err = e.admin.trust.RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "none.org"})
	wantCode(t, "refresh without a relationship", err, codes.NotFound)
	if got := status.Convert(err).Message(); got != `no relationship with trust domain "none.org"` {
		t.Errorf("text %q", got)
	}
	_, err = e.admin.trust.RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "web.org"})
	wantCode(t, "refresh where nobody listens", err, codes.Internal)
	del, err := e.admin.trust.BatchDeleteFederationRelationship(t.Context(), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"peer.org", "peer.org", "bad name"}})
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "delete", del.Results[0].Status, codes.OK, "OK")
	wantStatus(t, "delete again", del.Results[1].Status, codes.NotFound, "federation relationship not found")
	wantStatus(t, "delete a bad name", del.Results[2].Status, codes.InvalidArgument, "trust domain argument is not valid")
	if _, err := e.admin.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "peer.org"}); err != nil {
		t.Errorf("the bundle went with the relationship: %v", err)
	}
}

// TestWatchFederated: an agent is sent the bundles that its entries federate with, and each change.
func TestWatchFederated(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	set := func(b *types.Bundle) {
		t.Helper()
		resp, err := e.admin.bundle.BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
		if err != nil || resp.Results[0].Status.Code != 0 {
			t.Fatal(resp, err)
		}
	}
	one, two := foreignBundle(t, "one.org"), foreignBundle(t, "two.org")
	set(one)
	set(two)
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0"), FederatesWith: []string{"one.org"}})[0]
	feed := a.watch(ctx, t, &nodev1.WatchRequest{})
	recv := func(what string, bundles []*types.Bundle, removed ...string) *nodev1.WatchResponse {
		t.Helper()
		m, err := feed.Recv()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !slices.EqualFunc(m.Federated, bundles, func(a, b *types.Bundle) bool { return proto.Equal(a, b) }) || !slices.Equal(m.FederatedRemoved, removed) {
			t.Errorf("%s: %v and without %v", what, m.Federated, m.FederatedRemoved)
		}
		return m
	}
	first := recv("at first", []*types.Bundle{one})
	one.SequenceNumber++
	set(one)
	if m := recv("a changed bundle", []*types.Bundle{one}); m.Full || len(m.Entries) != 0 || m.Bundle != nil {
		t.Errorf("a changed bundle comes with more: %v", m)
	}
	set(foreignBundle(t, "two.org")) // not this agent's: nothing comes of it
	w.FederatesWith = []string{"two.org"}
	now, err := e.admin.bundle.GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "two.org"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin.entry.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{w}}); err != nil {
		t.Fatal(err)
	}
	last := recv("another trust domain", []*types.Bundle{now}, "one.org")
	// An agent that resumes has its entries, and is sent all bundles.
	again := a.watch(ctx, t, &nodev1.WatchRequest{Resume: last.State})
	if m, err := again.Recv(); err != nil || m.Full || len(m.Federated) != 1 || m.Federated[0].TrustDomain != "two.org" {
		t.Errorf("resumed: %v, %v", m, err)
	}
	if _, err := e.admin.bundle.BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"two.org"}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE}); err != nil {
		t.Fatal(err)
	}
	var removed []string
	for len(removed) == 0 { // the entry's change may come first
		m, err := feed.Recv()
		if err != nil {
			t.Fatal(err)
		}
		removed = m.FederatedRemoved
	}
	if !slices.Equal(removed, []string{"two.org"}) || first.Full != true {
		t.Errorf("a removed bundle: %v", removed)
	}
}
