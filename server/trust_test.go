// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
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

// localKind are the calls of LocalAuthority for one kind of authority.
type localKind struct {
	state                   func() (active, prepared, old *authorityv1.AuthorityState, err error)
	prepare                 func() (*authorityv1.AuthorityState, error)
	activate, taint, revoke func(context.Context, string) (*authorityv1.AuthorityState, error)
	inBundle                func(*types.Bundle, string) (there, tainted bool)
}

func localKinds(t *testing.T, c authorityv1.LocalAuthorityClient) map[string]localKind {
	ctx := t.Context()
	return map[string]localKind{
		"X509": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetX509AuthorityState(ctx, &authorityv1.GetX509AuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareX509Authority(ctx, &authorityv1.PrepareX509AuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateX509Authority(ctx, &authorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintX509Authority(ctx, &authorityv1.TaintX509AuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeX509Authority(ctx, &authorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.X509Authorities {
					cert, err := x509.ParseCertificate(a.Asn1)
					if err == nil && hexOf(cert.SubjectKeyId) == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
		"JWT": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetJWTAuthorityState(ctx, &authorityv1.GetJWTAuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareJWTAuthority(ctx, &authorityv1.PrepareJWTAuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateJWTAuthority(ctx, &authorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintJWTAuthority(ctx, &authorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeJWTAuthority(ctx, &authorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.JwtAuthorities {
					if a.KeyId == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
		"WIT": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetWITAuthorityState(ctx, &authorityv1.GetWITAuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareWITAuthority(ctx, &authorityv1.PrepareWITAuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateWITAuthority(ctx, &authorityv1.ActivateWITAuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintWITAuthority(ctx, &authorityv1.TaintWITAuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeWITAuthority(ctx, &authorityv1.RevokeWITAuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.WitAuthorities {
					if a.KeyId == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
	}
}

// TestLocalAuthority: prepare, activate, taint, revoke for each kind, in that order only; and each step
// reaches an agent's open feed.
func TestLocalAuthority(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	for kind, k := range localKinds(t, e.admin.local) {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			feed := a.watch(ctx, t, &nodev1.WatchRequest{})
			until := func(what string, holds func(*types.Bundle) bool) {
				t.Helper()
				for {
					m, err := feed.Recv()
					if err != nil {
						t.Fatalf("%s does not reach the feed: %v", what, err)
					}
					if m.Bundle == nil {
						continue
					}
					if err := feed.Send(&nodev1.WatchRequest{BundleSequence: m.Bundle.SequenceNumber}); err != nil {
						t.Fatal(err)
					}
					if holds(m.Bundle) {
						return
					}
				}
			}
			first, prepared, old, err := k.state()
			if err != nil || first == nil || prepared != nil || old != nil || first.ExpiresAt < time.Now().Unix() || first.UpstreamAuthoritySubjectKeyId != "" {
				t.Fatalf("at first: %v, %v, %v, %v", first, prepared, old, err)
			}
			_, err = k.activate(ctx, first.AuthorityId)
			wantCode(t, "activate the active one", err, codes.InvalidArgument)
			_, err = k.taint(ctx, first.AuthorityId)
			wantCode(t, "taint the active one", err, codes.InvalidArgument)
			second, err := k.prepare()
			if err != nil || second.AuthorityId == first.AuthorityId {
				t.Fatal(second, err)
			}
			until("the prepared authority", func(b *types.Bundle) bool { there, _ := k.inBundle(b, second.AuthorityId); return there })
			_, err = k.activate(ctx, "")
			wantCode(t, "activate nothing", err, codes.InvalidArgument)
			if got, err := k.activate(ctx, second.AuthorityId); err != nil || got.AuthorityId != second.AuthorityId {
				t.Fatal(got, err)
			}
			active, prepared, old, err := k.state()
			if err != nil || active.AuthorityId != second.AuthorityId || prepared != nil || old.GetAuthorityId() != first.AuthorityId {
				t.Errorf("activated: %v, %v, %v, %v", active, prepared, old, err)
			}
			_, err = k.revoke(ctx, first.AuthorityId)
			wantCode(t, "revoke an untainted one", err, codes.Internal)
			_, err = k.taint(ctx, second.AuthorityId)
			wantCode(t, "taint the active one", err, codes.InvalidArgument)
			if _, err := k.taint(ctx, first.AuthorityId); err != nil {
				t.Fatal(err)
			}
			until("the taint", func(b *types.Bundle) bool { _, tainted := k.inBundle(b, first.AuthorityId); return tainted })
			if _, tainted := k.inBundle(e.ownBundle(), first.AuthorityId); !tainted {
				t.Error("GetBundle does not show the taint")
			}
			if kind == "X509" { // the agent's own SVID is below the old one
				e.bundle = bundleOf(t, e.ownBundle())
				renewed := e.newAgent()
				a.clients, a.cert, a.id = renewed.clients, renewed.cert, renewed.id
			}
			if _, err := k.revoke(ctx, first.AuthorityId); err != nil {
				t.Fatal(err)
			}
			until("the revocation", func(b *types.Bundle) bool { there, _ := k.inBundle(b, first.AuthorityId); return !there })
			_, err = k.revoke(ctx, first.AuthorityId)
			wantCode(t, "revoke again", err, codes.InvalidArgument)
			_, err = k.revoke(ctx, "")
			wantCode(t, "revoke nothing", err, codes.InvalidArgument)
		})
	}
	for _, err := range []error{
		func() error {
			_, err := e.admin.local.TaintX509UpstreamAuthority(t.Context(), &authorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: "00"})
			return err
		}(),
		func() error {
			_, err := e.admin.local.RevokeX509UpstreamAuthority(t.Context(), &authorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: "00"})
			return err
		}(),
	} {
		wantCode(t, "without an upstream authority", err, codes.FailedPrecondition)
	}
}

// TestUpstreamAuthority: a root of the upstream is tainted and revoked once we are below another.
func TestUpstreamAuthority(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem")
	use := func(ca *foreignCA) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(ca.key)
		if err == nil {
			err = os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
		}
		if err == nil {
			err = os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before, after := newForeignCA(t, "example.org"), newForeignCA(t, "example.org")
	oldID, newID := hexOf(before.cert.SubjectKeyId), hexOf(after.cert.SubjectKeyId)
	use(before)
	e := start(t, func(c *server.Config) {
		c.CATTL, c.DefaultX509SVIDTTL = "1h", "5m"
		c.UpstreamAuthority = &server.UpstreamConfig{Type: "disk", CertFilePath: certPath, KeyFilePath: keyPath}
	})
	k := localKinds(t, e.admin.local)["X509"]
	if active, _, _, err := k.state(); err != nil || active.UpstreamAuthoritySubjectKeyId != oldID {
		t.Fatalf("at first: %v, %v; want below %s", active, err, oldID)
	}
	taint := func(id string) error {
		_, err := e.admin.local.TaintX509UpstreamAuthority(t.Context(), &authorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return err
	}
	revoke := func(id string) error {
		_, err := e.admin.local.RevokeX509UpstreamAuthority(t.Context(), &authorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return err
	}
	wantCode(t, "taint the root that we are below", taint(oldID), codes.InvalidArgument)
	use(after)
	next, err := k.prepare()
	if err != nil || next.UpstreamAuthoritySubjectKeyId != newID {
		t.Fatal(next, err)
	}
	if _, err := k.activate(t.Context(), next.AuthorityId); err != nil {
		t.Fatal(err)
	}
	_, err = k.taint(t.Context(), "00")
	wantCode(t, "taint our own authority below an upstream", err, codes.FailedPrecondition)
	wantCode(t, "revoke an untainted root", revoke(oldID), codes.Internal)
	if err := taint(strings.ToUpper(oldID)); err != nil {
		t.Fatal(err)
	}
	if there, tainted := k.inBundle(e.ownBundle(), oldID); !there || !tainted {
		t.Errorf("in the bundle: %t, tainted: %t", there, tainted)
	}
	if err := revoke(oldID); err != nil {
		t.Fatal(err)
	}
	if there, _ := k.inBundle(e.ownBundle(), oldID); there {
		t.Error("the revoked root is in the bundle")
	}
	wantCode(t, "revoke the root that we are below", revoke(newID), codes.InvalidArgument)
}

// TestActivationWaitsForAgents: a connected agent that has not shown the new bundle holds activation
// back; one that only polls, as SPIRE's, does not.
func TestActivationWaitsForAgents(t *testing.T) {
	e := start(t, nil)
	a, polling := e.newAgent(), e.newAgent()
	k := localKinds(t, e.admin.local)["JWT"]
	feed := a.watch(t.Context(), t, &nodev1.WatchRequest{})
	if _, err := feed.Recv(); err != nil {
		t.Fatal(err)
	}
	next, err := k.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := polling.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = k.activate(short, next.AuthorityId)
	wantCode(t, "while an agent has not shown the bundle", err, codes.DeadlineExceeded)
	if active, _, _, err := k.state(); err != nil || active.AuthorityId == next.AuthorityId {
		t.Errorf("it is active: %v, %v", active, err)
	}
	if err := feed.Send(&nodev1.WatchRequest{BundleSequence: e.ownBundle().SequenceNumber}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := k.activate(t.Context(), next.AuthorityId); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("after the agent showed it: %v after %v", err, time.Since(began))
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
