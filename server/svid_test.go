// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	evidencev1 "github.com/assay-id/assay/proto/evidence"
	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
)

// sign gets an SVID without evidence.
func (e *env) sign(a *agent, entry string, key *ecdsa.PrivateKey) *types.X509SVID {
	e.t.Helper()
	resp, err := a.svid.BatchNewX509SVID(e.t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: newCSR(e.t, key, &x509.CertificateRequest{})}}})
	if err != nil || resp.Results[0].Status.Code != 0 {
		e.t.Fatal(resp, err)
	}
	return resp.Results[0].Svid
}

// TestBatchNewX509SVID: status on every item, in order, one each (T4); back-dating (T5).
func TestBatchNewX509SVID(t *testing.T) {
	e := start(t, nil)
	a, other := e.newAgent(), e.newAgent()
	es := e.create(
		&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0"), X509SvidTtl: 300, DnsNames: []string{"w.example"}},
		&types.Entry{ParentId: other.id, SpiffeId: sid("/other"), Selectors: sel("unix", "uid:0")},
		&types.Entry{ParentId: a.id, SpiffeId: sid("/v"), Selectors: sel("unix", "uid:0")},
	)
	ignored, _ := url.Parse("spiffe://example.org/something/else")
	csr := newCSR(t, newKey(t), &x509.CertificateRequest{URIs: []*url.URL{ignored}, DNSNames: []string{"evil.example"}})
	forged := append([]byte{}, csr...)
	forged[len(forged)-1] ^= 1
	params := []*svidv1.NewX509SVIDParams{
		{EntryId: es[0].Id, Csr: csr}, {EntryId: "unknown", Csr: csr}, {EntryId: es[1].Id, Csr: csr},
		{Csr: csr}, {EntryId: es[0].Id}, {EntryId: es[0].Id, Csr: []byte("x")}, {EntryId: es[0].Id, Csr: forged}, {EntryId: es[2].Id, Csr: csr},
	}
	resp, err := a.svid.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: params})
	if err != nil || len(resp.Results) != len(params) {
		t.Fatalf("%d results for %d parameters, %v", len(resp.GetResults()), len(params), err)
	}
	for i, want := range []string{"OK", "entry not found or not authorized", "entry not found or not authorized", "missing entry ID", "missing CSR", "malformed CSR", "invalid CSR signature", "OK"} {
		r := resp.Results[i]
		if r.Status == nil || !strings.HasPrefix(r.Status.Message, want) || (r.Svid != nil) != (want == "OK") {
			t.Errorf("item %d: %v, svid %t; want %q", i, r.Status, r.Svid != nil, want)
		}
	}
	svid := resp.Results[0].Svid
	leaf, err := x509.ParseCertificate(svid.CertChain[0])
	if err != nil {
		t.Fatal(err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != 310*time.Second || svid.ExpiresAt != leaf.NotAfter.Unix() {
		t.Errorf("life %v, want 300 s and 10 s of back-dating", life)
	}
	if leaf.URIs[0].String() != "spiffe://example.org/w" || leaf.Subject.CommonName != "w.example" || len(leaf.DNSNames) != 1 || svid.Id.Path != "/w" || svid.Hint != "" {
		t.Errorf("leaf %v %v, svid id %v", leaf.URIs, leaf.Subject, svid.Id)
	}
	if got := resp.Results[7].Svid.Id.Path; got != "/v" {
		t.Errorf("the last item is of %s", got)
	}

	_, err = a.svid.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{})
	wantCode(t, "no parameters", err, codes.InvalidArgument)
	many := make([]*svidv1.NewX509SVIDParams, 501)
	for i := range many {
		many[i] = &svidv1.NewX509SVIDParams{EntryId: es[0].Id}
	}
	_, err = a.svid.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: many})
	wantCode(t, "501 parameters", err, codes.ResourceExhausted)
}

// TestBundleIsStable: nothing changes while nothing happens (T9).
func TestBundleIsStable(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	first, err := a.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil || len(first.X509Authorities) != 1 || len(first.JwtAuthorities) != 1 || len(first.WitAuthorities) != 1 || first.RefreshHint != 0 || first.TrustDomain != "example.org" {
		t.Fatalf("GetBundle = %v, %v", first, err)
	}
	for range 5 {
		again, err := a.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
		if err != nil || !proto.Equal(first, again) {
			t.Errorf("GetBundle = %v, %v; want the same", again, err)
		}
	}
	masked, err := a.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{RefreshHint: true}})
	if err != nil || !proto.Equal(masked, &types.Bundle{TrustDomain: "example.org"}) {
		t.Errorf("masked: %v, %v", masked, err)
	}
	_, err = a.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.org"})
	wantCode(t, "an unknown federated bundle", err, codes.NotFound)
	n, err := e.admin.bundle.CountBundles(t.Context(), &bundlev1.CountBundlesRequest{})
	if err != nil || n.Count != 1 {
		t.Errorf("CountBundles = %v, %v", n, err)
	}
}

func TestMintX509SVID(t *testing.T) {
	e := start(t, nil)
	mint := func(uris []string, dns ...string) (*svidv1.MintX509SVIDResponse, error) {
		req := &x509.CertificateRequest{DNSNames: dns}
		for _, u := range uris {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			req.URIs = append(req.URIs, parsed)
		}
		return e.admin.svid.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: newCSR(t, newKey(t), req), Ttl: 60})
	}
	resp, err := mint([]string{"spiffe://example.org/webhook"}, "b.example", "*.a.example")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(resp.Svid.CertChain[0])
	if err != nil || leaf.NotAfter.Sub(leaf.NotBefore) != 70*time.Second || leaf.Subject.CommonName != "b.example" || len(leaf.DNSNames) != 2 {
		t.Errorf("minted %v, %v", leaf, err)
	}
	for what, c := range map[string]struct{ uris, dns []string }{
		"no URI":          {},
		"two URIs":        {uris: []string{"spiffe://example.org/a", "spiffe://example.org/b"}},
		"reserved":        {uris: []string{"spiffe://example.org/spire/server"}},
		"foreign":         {uris: []string{"spiffe://other.org/a"}},
		"bad DNS":         {uris: []string{"spiffe://example.org/a"}, dns: []string{"a..b"}},
		"wildcard covers": {uris: []string{"spiffe://example.org/a"}, dns: []string{"*.example", "a.example"}},
	} {
		_, err := mint(c.uris, c.dns...)
		wantCode(t, what, err, codes.InvalidArgument)
	}
}

func facts(uid uint32) *evidencev1.Facts {
	return &evidencev1.Facts{
		Process: &evidencev1.ProcessKey{BootId: "b", Tgid: 1, StartBoottime: 2, ExecId: 3}, Tier: evidencev1.Tier_TIER_T2, Observed: true,
		Executable: &evidencev1.Executable{Path: "/bin/pay", Sha256: make([]byte, 32)}, Credentials: &evidencev1.Credentials{Uid: uid},
	}
}

// TestSignOnEvidence: the server derives the selectors itself and names what is missing.
func TestSignOnEvidence(t *testing.T) {
	e := start(t, func(c *server.Config) { c.AllowWithoutEvidence = nil })
	a, other := e.newAgent(), e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7", "unix", "path:/bin/pay", "evidence", "tier:t2")})[0]
	csr := newCSR(t, newKey(t), &x509.CertificateRequest{})
	sign := func(a *agent, change func(*nodev1.SignX509SVIDRequest)) (*nodev1.SignX509SVIDResponse, error) {
		req := &nodev1.SignX509SVIDRequest{EntryId: w.Id, Csr: csr, Facts: facts(7)}
		change(req)
		return a.node.SignX509SVID(t.Context(), req)
	}
	resp, err := sign(a, func(*nodev1.SignX509SVIDRequest) {})
	if err != nil || resp.Svid.Id.Path != "/w" {
		t.Fatalf("SignX509SVID = %v, %v", resp, err)
	}
	if !strings.Contains(e.logs.String(), "evidence=t2") {
		t.Error("the issue is not in the log with its evidence")
	}
	_, err = sign(a, func(r *nodev1.SignX509SVIDRequest) { r.Facts = facts(8); r.Facts.Tier = evidencev1.Tier_TIER_T3 })
	wantCode(t, "other facts", err, codes.FailedPrecondition)
	if got := status.Convert(err).Message(); !strings.Contains(got, "missing evidence:tier:t2, unix:uid:7") {
		t.Errorf("text %q does not name what is missing", got)
	}
	for what, c := range map[string]struct {
		change func(*nodev1.SignX509SVIDRequest)
		code   codes.Code
	}{
		"no facts":       {func(r *nodev1.SignX509SVIDRequest) { r.Facts = nil }, codes.InvalidArgument},
		"no credentials": {func(r *nodev1.SignX509SVIDRequest) { r.Facts.Credentials = nil }, codes.InvalidArgument},
		"short digest":   {func(r *nodev1.SignX509SVIDRequest) { r.Facts.Executable.Sha256 = []byte{1} }, codes.InvalidArgument},
		"no tier":        {func(r *nodev1.SignX509SVIDRequest) { r.Facts.Tier = 0 }, codes.FailedPrecondition},
		"no CSR":         {func(r *nodev1.SignX509SVIDRequest) { r.Csr = nil }, codes.InvalidArgument},
		"unknown entry":  {func(r *nodev1.SignX509SVIDRequest) { r.EntryId = "x" }, codes.NotFound},
	} {
		_, err := sign(a, c.change)
		wantCode(t, what, err, c.code)
	}
	_, err = sign(other, func(*nodev1.SignX509SVIDRequest) {})
	wantCode(t, "another agent's entry", err, codes.NotFound)

	// Without evidence this server signs nothing.
	batch, err := a.svid.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: w.Id, Csr: csr}}})
	if err != nil || codes.Code(batch.Results[0].Status.Code) != codes.FailedPrecondition || !strings.Contains(batch.Results[0].Status.Message, "allow_without_evidence") || batch.Results[0].Svid != nil {
		t.Errorf("without evidence: %v, %v", batch, err)
	}
}

// TestWatch: everything first, then each change as it happens, until the node is banned.
func TestWatch(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7")})[0]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := a.watch(ctx, t, &nodev1.WatchRequest{})
	recv := func() *nodev1.WatchResponse {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := recv()
	if !first.Full || len(first.Entries) != 1 || first.Entries[0].Id != w.Id || len(first.Bundle.GetX509Authorities()) != 1 || first.Revision == 0 {
		t.Fatalf("first message: %v", first)
	}
	began := time.Now()
	w.Hint = "new"
	if _, err := e.admin.entry.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{w}}); err != nil {
		t.Fatal(err)
	}
	m := recv()
	if m.Full || len(m.Entries) != 1 || m.Entries[0].Hint != "new" || m.Bundle != nil || m.Revision <= first.Revision {
		t.Errorf("a change: %v", m)
	}
	t.Logf("update to agent: %v", time.Since(began))
	if _, err := e.admin.entry.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{w.Id}}); err != nil {
		t.Fatal(err)
	}
	if m = recv(); len(m.Removed) != 1 || m.Removed[0] != w.Id {
		t.Errorf("a deletion: %v", m)
	}
	// An agent that still has everything is sent the bundle only.
	last := m
	again := a.watch(ctx, t, &nodev1.WatchRequest{Resume: last.State})
	if m, err := again.Recv(); err != nil || m.Full || len(m.Entries) != 0 || m.Bundle == nil || !bytes.Equal(m.State, last.State) {
		t.Errorf("resumed: %v, %v", m, err)
	}
	w2 := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w2"), Selectors: sel("unix", "uid:7")})[0]
	for _, s := range []nodev1.Node_WatchClient{stream, again} {
		if m, err := s.Recv(); err != nil || m.Full || len(m.Entries) != 1 || m.Entries[0].Id != w2.Id {
			t.Errorf("the next change: %v, %v", m, err)
		}
	}
	late := a.watch(ctx, t, &nodev1.WatchRequest{Resume: last.State})
	if m, err := late.Recv(); err != nil || !m.Full || len(m.Entries) != 1 {
		t.Errorf("an agent that missed a change: %v, %v", m, err)
	}
	// A renewed SVID ends the stream of the old one gently.
	key := newKey(t)
	renewed, err := a.agent.RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, key, &x509.CertificateRequest{})}})
	if err != nil {
		t.Fatal(err)
	}
	fresh := e.agentOf(renewed.Svid, key)
	old := stream
	stream = fresh.watch(ctx, t, &nodev1.WatchRequest{})
	if m := recv(); !m.Full || len(m.Entries) != 1 {
		t.Errorf("first message of the new stream: %v", m)
	}
	_, err = old.Recv()
	wantCode(t, "the old stream", err, codes.Aborted)

	if _, err := e.admin.agent.BanAgent(ctx, &agentv1.BanAgentRequest{Id: a.id}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantDenied(t, "the stream of a banned node", err, types.PermissionDeniedDetails_AGENT_BANNED)
}
