// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/server"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func (f *foreignCA) svid(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	uri, _ := url.Parse(id)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, template, f.cert, key.Public(), f.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// mint returns connections of the holder of a new SVID of ours.
func (e *env) mint(path string) *clients {
	e.t.Helper()
	key := newKey(e.t)
	uri, _ := url.Parse("spiffe://example.org" + path)
	resp, err := e.admin.svid.MintX509SVID(e.t.Context(), &svidv1.MintX509SVIDRequest{Csr: newCSR(e.t, key, &x509.CertificateRequest{URIs: []*url.URL{uri}})})
	if err != nil {
		e.t.Fatal(err)
	}
	return e.dial(&tls.Certificate{Certificate: resp.Svid.CertChain, PrivateKey: key})
}

// TestAdminIDs: admins by configuration, of our trust domain and of one that we federate with.
func TestAdminIDs(t *testing.T) {
	e := start(t, func(c *server.Config) {
		c.AdminIDs = []string{"spiffe://example.org/ops", "spiffe://partner.org/ops"}
	})
	list := func(c *clients) error {
		_, err := c.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
		return err
	}
	if err := list(e.mint("/ops")); err != nil {
		t.Errorf("an admin of ours: %v", err)
	}
	wantDenied(t, "a workload", list(e.mint("/other")))
	partner := newForeignCA(t, "partner.org")
	wantCode(t, "a foreign admin without his bundle", list(e.dial(partner.svid(t, "spiffe://partner.org/ops"))), codes.Unavailable)
	_, err := e.admin.bundle.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{{TrustDomain: "partner.org", X509Authorities: []*types.X509Certificate{{Asn1: partner.cert.Raw}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := list(e.dial(partner.svid(t, "spiffe://partner.org/ops"))); err != nil {
		t.Errorf("a foreign admin: %v", err)
	}
	wantCode(t, "another foreigner", list(e.dial(partner.svid(t, "spiffe://partner.org/other"))), codes.Unavailable)
	wantCode(t, "a foreign authority for our admin", list(e.dial(partner.svid(t, "spiffe://example.org/ops"))), codes.Unavailable)
	_, err = e.mint("/ops").logger.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	wantCode(t, "an admin on what is local", err, codes.Unimplemented)
}

// TestRoles: a role's holder does what its verbs say to what is within its bounds, and nothing else.
func TestRoles(t *testing.T) {
	e := start(t, func(c *server.Config) {
		c.Roles = []server.RoleConfig{{
			Name: "pay", IDs: []string{"spiffe://example.org/ci/*"}, Verbs: []string{"entry.read", "entry.write", "node.read", "node.write", "bundle.read", "bundle.write"},
			SPIFFEIDs: []string{"spiffe://example.org/pay/*", "spiffe://example.org/ci/*"}, Parents: []string{"spiffe://example.org/spire/agent/join_token/mine"}, SelectorTypes: []string{"unix"},
			Nodes: []string{"spiffe://example.org/spire/agent/join_token/mine"}, TrustDomains: []string{"mine.org"},
		}, {Name: "reader", IDs: []string{"spiffe://example.org/reader"}, Verbs: []string{"node.read"}, Nodes: []string{"spiffe://example.org/spire/agent/*"}}}
	})
	if _, err := e.admin.agent.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "mine"}); err != nil {
		t.Fatal(err)
	}
	mine, other := e.newAgentWith("mine"), e.newAgent()
	ci, reader := e.mint("/ci/x"), e.mint("/reader")
	ours := &types.Entry{ParentId: mine.id, SpiffeId: sid("/pay/a"), Selectors: sel("unix", "uid:1")}
	theirs := e.create(&types.Entry{ParentId: mine.id, SpiffeId: sid("/other"), Selectors: sel("unix", "uid:1")}, &types.Entry{ParentId: other.id, SpiffeId: sid("/pay/b"), Selectors: sel("unix", "uid:1")})

	with := func(change func(*types.Entry)) *types.Entry {
		p := &types.Entry{ParentId: mine.id, SpiffeId: sid("/pay/new"), Selectors: sel("unix", "uid:1")}
		change(p)
		return p
	}
	created, err := ci.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{
		ours, theirs[0],
		with(func(p *types.Entry) { p.ParentId = other.id }), with(func(p *types.Entry) { p.Selectors = sel("unix", "uid:1", "docker", "x") }),
		with(func(p *types.Entry) { p.Admin = true }), with(func(p *types.Entry) { p.Downstream = true }), with(func(p *types.Entry) { p.SpiffeId = sid("/ci/y") }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range created.Results {
		want := codes.PermissionDenied
		if i == 0 {
			want = codes.OK
		}
		if codes.Code(r.Status.Code) != want || (r.Entry != nil) != (want == codes.OK) {
			t.Errorf("create %d: %v, want %s", i, r, want)
		}
	}
	ours = created.Results[0].Entry
	list, err := ci.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Id != ours.Id {
		t.Errorf("ListEntries = %v, %v", list, err)
	}
	if n, err := ci.entry.CountEntries(t.Context(), &entryv1.CountEntriesRequest{}); err != nil || n.Count != 1 {
		t.Errorf("CountEntries = %v, %v", n, err)
	}
	if _, err := ci.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: ours.Id}); err != nil {
		t.Error(err)
	}
	_, err = ci.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: theirs[0].Id})
	wantCode(t, "GetEntry", err, codes.PermissionDenied)
	moved, raised := clone(ours), clone(ours)
	moved.SpiffeId, raised.Admin = sid("/other"), true
	hinted := clone(ours)
	hinted.Hint = "h"
	stolen := clone(theirs[0])
	stolen.SpiffeId = sid("/pay/stolen")
	updated, err := ci.entry.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{hinted, moved, raised, stolen, {Id: "none"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.OK, codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied, codes.NotFound} {
		if r := updated.Results[i]; codes.Code(r.Status.Code) != want {
			t.Errorf("update %d: %v, want %s", i, r, want)
		}
	}
	deleted, err := ci.entry.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{theirs[0].Id, ours.Id, "none", ""}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.PermissionDenied, codes.OK, codes.NotFound, codes.InvalidArgument} {
		if r := deleted.Results[i]; codes.Code(r.Status.Code) != want {
			t.Errorf("delete %d: %v, want %s", i, r, want)
		}
	}

	agents, err := ci.agent.ListAgents(t.Context(), &agentv1.ListAgentsRequest{})
	if err != nil || len(agents.Agents) != 1 || agents.Agents[0].Id.Path != mine.id.Path {
		t.Errorf("ListAgents = %v, %v", agents, err)
	}
	if n, err := ci.agent.CountAgents(t.Context(), &agentv1.CountAgentsRequest{}); err != nil || n.Count != 1 {
		t.Errorf("CountAgents = %v, %v", n, err)
	}
	if n, err := reader.agent.CountAgents(t.Context(), &agentv1.CountAgentsRequest{}); err != nil || n.Count != 2 {
		t.Errorf("CountAgents of the reader = %v, %v", n, err)
	}
	if ns, err := ci.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{}); err != nil || len(ns.Nodes) != 1 {
		t.Errorf("ListNodes = %v, %v", ns, err)
	}
	for what, err := range map[string]error{
		"GetAgent":    second(ci.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: other.id})),
		"BanAgent":    second(ci.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: other.id})),
		"DeleteAgent": second(ci.agent.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: other.id})),
		"GetNode":     second(ci.nodes.GetNode(t.Context(), &adminv1.GetNodeRequest{SpiffeId: idText(other.id)})),
		"Suspend":     second(ci.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: idText(other.id)})),
		"Readmit":     second(ci.nodes.Readmit(t.Context(), &adminv1.ReadmitRequest{SpiffeId: idText(other.id)})),
		"Approve":     second(ci.nodes.Approve(t.Context(), &adminv1.ApproveRequest{SpiffeId: idText(other.id)})),
		"Ban":         second(ci.nodes.Ban(t.Context(), &adminv1.BanRequest{SpiffeId: idText(other.id)})),
		// What no role allows, and what this one does not.
		"CreateJoinToken": second(ci.agent.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60})),
		"AppendBundle":    second(ci.bundle.AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{})),
		"MintX509SVID":    second(ci.svid.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{})),
		"a reader's ban":  second(reader.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: mine.id})),
		"a reader's list": second(reader.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})),
	} {
		wantCode(t, what, err, codes.PermissionDenied)
	}
	if n, err := ci.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: idText(mine.id), Reason: "r"}); err != nil || n.Standing.State != "suspended" {
		t.Errorf("Suspend = %v, %v", n, err)
	}

	set, err := ci.bundle.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{foreignBundle(t, "mine.org"), foreignBundle(t, "other.org")}})
	if err != nil || set.Results[0].Status.Code != 0 || codes.Code(set.Results[1].Status.Code) != codes.PermissionDenied {
		t.Errorf("BatchSetFederatedBundle = %v, %v", set, err)
	}
	if _, err := e.admin.bundle.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{foreignBundle(t, "other.org")}}); err != nil {
		t.Fatal(err)
	}
	if bs, err := ci.bundle.ListFederatedBundles(t.Context(), &bundlev1.ListFederatedBundlesRequest{}); err != nil || len(bs.Bundles) != 1 {
		t.Errorf("ListFederatedBundles = %v, %v", bs, err)
	}
	rel := func(td string) *types.FederationRelationship {
		return &types.FederationRelationship{TrustDomain: td, BundleEndpointUrl: "https://127.0.0.1:1", BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}}
	}
	both := []*types.FederationRelationship{rel("mine.org"), rel("other.org")}
	rels, err := ci.trust.BatchCreateFederationRelationship(t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: both})
	if err != nil || rels.Results[0].Status.Code != 0 || codes.Code(rels.Results[1].Status.Code) != codes.PermissionDenied {
		t.Errorf("BatchCreateFederationRelationship = %v, %v", rels, err)
	}
	ups, err := ci.trust.BatchUpdateFederationRelationship(t.Context(), &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: both})
	if err != nil || ups.Results[0].Status.Code != 0 || codes.Code(ups.Results[1].Status.Code) != codes.PermissionDenied {
		t.Errorf("BatchUpdateFederationRelationship = %v, %v", ups, err)
	}
	dels, err := ci.trust.BatchDeleteFederationRelationship(t.Context(), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"mine.org", "other.org"}})
	if err != nil || dels.Results[0].Status.Code != 0 || codes.Code(dels.Results[1].Status.Code) != codes.PermissionDenied {
		t.Errorf("BatchDeleteFederationRelationship = %v, %v", dels, err)
	}
	for what, err := range map[string]error{
		"GetFederatedBundle":        second(ci.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.org"})),
		"GetFederationRelationship": second(ci.trust.GetFederationRelationship(t.Context(), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "other.org"})),
		"RefreshBundle":             second(ci.trust.RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "other.org"})),
		"dissociate":                second(ci.bundle.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"mine.org"}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE})),
	} {
		wantCode(t, what, err, codes.PermissionDenied)
	}
	if !strings.Contains(e.logs.String(), "caller=spiffe://example.org/ci/x") || !strings.Contains(e.logs.String(), "request_id=") {
		t.Error("the log does not name the call and the caller")
	}
}

func second[T any](_ T, err error) error { return err }

func clone(p *types.Entry) *types.Entry {
	return &types.Entry{Id: p.Id, ParentId: p.ParentId, SpiffeId: p.SpiffeId, Selectors: p.Selectors, Hint: p.Hint}
}

// TestLogger: the level changes while the server runs.
func TestLogger(t *testing.T) {
	e := start(t, nil)
	l, err := e.admin.logger.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	if err != nil || l.CurrentLevel != types.LogLevel_INFO || l.LaunchLevel != types.LogLevel_INFO {
		t.Fatalf("GetLogger = %v, %v", l, err)
	}
	if strings.Contains(e.logs.String(), "level=DEBUG") {
		t.Error("a debug line at level info")
	}
	for level := types.LogLevel_PANIC; level <= types.LogLevel_TRACE; level++ {
		if l, err := e.admin.logger.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: level}); err != nil || l.CurrentLevel != level || l.LaunchLevel != types.LogLevel_INFO {
			t.Errorf("SetLogLevel(%s) = %v, %v", level, l, err)
		}
	}
	if !strings.Contains(e.logs.String(), "level=DEBUG") {
		t.Error("no debug line at level trace")
	}
	if l, err := e.admin.logger.ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{}); err != nil || l.CurrentLevel != types.LogLevel_INFO {
		t.Errorf("ResetLogLevel = %v, %v", l, err)
	}
	_, err = e.admin.logger.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{})
	wantCode(t, "no level", err, codes.InvalidArgument)
}

// TestHealthServices: all of grpc.health.v1.
func TestHealthServices(t *testing.T) {
	e := start(t, nil)
	list, err := e.admin.health.List(t.Context(), &healthv1.HealthListRequest{})
	if err != nil || list.Statuses[""].GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("List = %v, %v", list, err)
	}
	watch, err := e.admin.health.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := watch.Recv(); err != nil || st.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("Watch = %v, %v", st, err)
	}
}

func TestCallersConfig(t *testing.T) {
	base := server.RoleConfig{Name: "r", IDs: []string{"spiffe://example.org/x"}, Verbs: []string{"node.read"}, Nodes: []string{"spiffe://example.org/spire/agent/*"}}
	role := func(change func(*server.RoleConfig)) func(*server.Config) {
		r := base
		change(&r)
		return func(c *server.Config) { c.Roles = []server.RoleConfig{r} }
	}
	for want, change := range map[string]func(*server.Config){
		"":                                 role(func(*server.RoleConfig) {}),
		"admin_ids":                        func(c *server.Config) { c.AdminIDs = []string{"ops"} },
		"write ids and verbs":              role(func(r *server.RoleConfig) { r.Verbs = nil }),
		`there is no verb "node.reboot"`:   role(func(r *server.RoleConfig) { r.Verbs = []string{"node.reboot"} }),
		"node.read needs nodes":            role(func(r *server.RoleConfig) { r.Nodes = nil }),
		"entry.read needs spiffe_ids":      role(func(r *server.RoleConfig) { r.Verbs = []string{"entry.read"} }),
		"bundle.write needs trust_domains": role(func(r *server.RoleConfig) { r.Verbs = []string{"bundle.write"} }),
		"ids: \"x\" is no SPIFFE ID":       role(func(r *server.RoleConfig) { r.IDs = []string{"x"} }),
		"trust_domains":                    role(func(r *server.RoleConfig) { r.TrustDomains = []string{"Not A Name"} }),
		"is there twice":                   func(c *server.Config) { c.Roles = []server.RoleConfig{base, base} },
		"ratelimit: signing -2":            func(c *server.Config) { c.RateLimit = &server.RateLimitConfig{Signing: -2} },
	} {
		c := server.Config{TrustDomain: "example.org", JoinToken: &server.JoinTokenConfig{}}
		change(&c)
		if err := c.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
