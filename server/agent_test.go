// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/store/member"
)

// TestTransport is the handshake that SPIRE's agent relies on (spire-wire T1).
func TestTransport(t *testing.T) {
	e := start(t, nil)
	key := newKey(t)
	anonymous := e.dial(nil)
	res, err := attest(t, anonymous, "join_token", []byte(e.token(nil)), key)
	if err != nil {
		t.Fatal(err)
	}
	if res.Reattestable {
		t.Error("a join token agent can not attest again")
	}
	if _, err := anonymous.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Errorf("GetBundle on the anonymous connection: %v", err)
	}
	_, err = anonymous.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	wantDenied(t, "anonymous ListEntries", err)
	_, err = anonymous.debug.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
	wantCode(t, "Debug on TCP", err, codes.Unimplemented)

	var offered *tls.CertificateRequestInfo
	conn, err := tls.Dial("tcp", e.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, GetClientCertificate: func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		offered = i
		return &tls.Certificate{}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if offered == nil || len(offered.AcceptableCAs) != 0 {
		t.Errorf("certificate request %+v: want one, without CA names", offered)
	}
	st := conn.ConnectionState()
	id, err := x509svid.IDFromCert(st.PeerCertificates[0])
	if st.NegotiatedProtocol != "h2" || err != nil || id.Path() != "/spire/server" || len(st.PeerCertificates) != 1 {
		t.Errorf("server: protocol %q, ID %v (%v), %d certificates", st.NegotiatedProtocol, id, err, len(st.PeerCertificates))
	}
	if st, err := os.Stat(e.conf.SocketPath); err != nil || st.Mode().Perm() != 0o770 {
		t.Errorf("admin socket: %v, %v", st.Mode(), err)
	}
}

// TestForeignCertificate: a client certificate that is not under our bundle ends the handshake.
func TestForeignCertificate(t *testing.T) {
	e, other := start(t, nil), start(t, nil)
	foreign := other.newAgent()
	_, err := e.dial(foreign.cert).bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	wantCode(t, "a foreign certificate", err, codes.Unavailable)
}

// TestRenewal is the activation in two phases (T2).
func TestRenewal(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	ping := func(a *agent) error {
		_, err := a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
		return err
	}
	renew := func() *agent {
		t.Helper()
		key := newKey(t)
		resp, err := a.agent.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, key, &x509.CertificateRequest{})}})
		if err != nil {
			t.Fatal(err)
		}
		return e.agentOf(resp.Svid, key)
	}
	lost := renew()
	if err := ping(a); err != nil {
		t.Errorf("the old SVID after a renewal: %v", err)
	}
	fresh := renew()
	if err := ping(a); err != nil {
		t.Errorf("the old SVID after a second renewal: %v", err)
	}
	wantDenied(t, "a pending SVID that was replaced", ping(lost), types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	if err := ping(fresh); err != nil {
		t.Errorf("first use of the new SVID: %v", err)
	}
	wantDenied(t, "the old SVID after first use of the new one", ping(a), types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)

	_, err := fresh.agent.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{})
	wantCode(t, "renewal without parameters", err, codes.InvalidArgument)
	_, err = fresh.agent.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: []byte("x")}})
	wantCode(t, "renewal with a bad CSR", err, codes.InvalidArgument)
}

// TestDenials carry the reasons that agents decide on (T3).
func TestDenials(t *testing.T) {
	e := start(t, nil)
	a, b := e.newAgent(), e.newAgent()
	ping := func(a *agent) error {
		_, err := a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
		return err
	}
	if err := errors.Join(ping(a), ping(b)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin.agent.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: a.id}); err != nil {
		t.Fatal(err)
	}
	err := ping(a)
	wantDenied(t, "evicted", err, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED)
	if got := status.Convert(err).Message(); got != "authorization denied for method /spire.api.server.entry.v1.Entry/GetAuthorizedEntries" {
		t.Errorf("text %q", got)
	}
	if _, err := e.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: b.id}); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, "banned", ping(b), types.PermissionDeniedDetails_AGENT_BANNED)
	got, err := e.admin.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: b.id})
	if err != nil || !got.Banned || got.X509SvidSerialNumber != "" {
		t.Errorf("GetAgent of a banned one = %v, %v", got, err)
	}
	// Even with a token of the same name the banned one stays out.
	token := b.id.Path[strings.LastIndex(b.id.Path, "/")+1:]
	if _, err := e.admin.agent.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: token}); err != nil {
		t.Fatal(err)
	}
	_, err = attest(t, e.dial(nil), "join_token", []byte(token), newKey(t))
	wantDenied(t, "a banned agent that attests", err)
	if got := status.Convert(err).Message(); got != "failed to attest: agent is banned" {
		t.Errorf("text %q", got)
	}

	c := e.newAgent()
	_, err = c.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	wantDenied(t, "an agent as operator", err)
	_, err = e.admin.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, "an operator as agent", err)
	_, err = c.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: c.id})
	wantDenied(t, "an agent that bans", err)

	for what, err := range map[string]error{
		"get": func() error {
			_, err := e.admin.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: sid("/w")})
			return err
		}(),
		"delete": func() error {
			_, err := e.admin.agent.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: sid("/w")})
			return err
		}(),
		"ban": func() error { _, err := e.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{}); return err }(),
	} {
		wantCode(t, what+" of what is no agent", err, codes.InvalidArgument)
	}
	_, err = e.admin.agent.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: sid("/spire/agent/x/y")})
	wantCode(t, "delete of an unknown agent", err, codes.NotFound)
}

// TestAdminEntry: the holder of an SVID of an admin entry administers over TCP.
func TestAdminEntry(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/admin"), Selectors: sel("unix", "uid:0")})[0]
	key := newKey(t)
	holder := e.agentOf(e.sign(a, w.Id, key), key)
	_, err := holder.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	wantDenied(t, "a workload", err)
	w.Admin = true
	resp, err := e.admin.entry.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{w}})
	if err != nil || resp.Results[0].Status.Code != 0 {
		t.Fatal(resp, err)
	}
	if _, err := holder.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{}); err != nil {
		t.Errorf("an admin: %v", err)
	}
	_, err = holder.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, "an admin as agent", err, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED)
}

func TestJoinTokens(t *testing.T) {
	e := start(t, nil)
	token := e.token(sid("/group"))
	a := e.newAgentWith(token)
	if a.id.Path != "/spire/agent/join_token/"+token {
		t.Errorf("agent %s", a.id.Path)
	}
	_, err := attest(t, e.dial(nil), "join_token", []byte(token), newKey(t))
	wantCode(t, "a token used twice", err, codes.InvalidArgument)
	if got := status.Convert(err).Message(); got != "failed to attest: join token does not exist or has already been used" {
		t.Errorf("text %q", got)
	}
	// The alias entry makes the agent a member of /group.
	e.create(&types.Entry{ParentId: sid("/group"), SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")},
		&types.Entry{ParentId: a.id, SpiffeId: sid("/stays"), Selectors: sel("unix", "uid:0")})
	got, err := a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	if err != nil || len(got.Entries) != 3 {
		t.Errorf("authorised: %v, %v; want alias, /w and /stays", got, err)
	}
	if _, err := e.admin.agent.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: a.id}); err != nil {
		t.Fatal(err)
	}
	left, err := e.admin.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	if err != nil || len(left.Entries) != 2 {
		t.Errorf("after eviction: %v, %v; want all but the alias", left, err)
	}

	for what, req := range map[string]*agentv1.CreateJoinTokenRequest{
		"no ttl":         {},
		"reserved alias": {Ttl: 1, AgentId: sid("/spire/agent/x")},
		"bad token":      {Ttl: 1, Token: "a/b"},
	} {
		_, err := e.admin.agent.CreateJoinToken(t.Context(), req)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err = attest(t, e.dial(nil), "x509pop", []byte("x"), newKey(t))
	wantCode(t, "unknown attestor", err, codes.FailedPrecondition)
	_, err = attest(t, e.dial(nil), "join_token", nil, newKey(t))
	wantCode(t, "no payload", err, codes.InvalidArgument)
	if got := status.Convert(err).Message(); got != "malformed param: missing attestation data payload" {
		t.Errorf("text %q", got)
	}
}

func TestListAgents(t *testing.T) {
	e := start(t, nil)
	a, b := e.newAgent(), e.newAgent()
	if _, err := a.agent.PostStatus(t.Context(), &agentv1.PostStatusRequest{AgentVersion: "1.2.3"}); err != nil {
		t.Fatal(err)
	}
	_, err := a.agent.PostStatus(t.Context(), &agentv1.PostStatusRequest{AgentVersion: strings.Repeat("v", 256)})
	wantCode(t, "a long version", err, codes.InvalidArgument)
	if _, err := e.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: b.id}); err != nil {
		t.Fatal(err)
	}
	list := func(req *agentv1.ListAgentsRequest) *agentv1.ListAgentsResponse {
		t.Helper()
		resp, err := e.admin.agent.ListAgents(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	all := list(&agentv1.ListAgentsRequest{})
	if len(all.Agents) != 2 || all.NextPageToken != "" || all.Agents[0].Id.Path != a.id.Path || all.Agents[0].AgentVersion != "1.2.3" ||
		all.Agents[0].AttestationType != "join_token" || all.Agents[0].X509SvidSerialNumber != a.leaf().SerialNumber.String() {
		t.Errorf("ListAgents = %v", all)
	}
	page := list(&agentv1.ListAgentsRequest{PageSize: 1})
	second := list(&agentv1.ListAgentsRequest{PageSize: 1, PageToken: page.NextPageToken})
	last := list(&agentv1.ListAgentsRequest{PageSize: 1, PageToken: second.NextPageToken})
	if second.Agents[0].Id.Path != b.id.Path || second.NextPageToken == "" || len(last.Agents) != 0 || last.NextPageToken != "" {
		t.Errorf("pages: %v, %v, %v", page, second, last)
	}
	filter := &agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false), ByExpiresBefore: "garbage"}
	if got := list(&agentv1.ListAgentsRequest{Filter: filter, OutputMask: &types.AgentMask{}}); len(got.Agents) != 1 || got.Agents[0].Id.Path != a.id.Path || got.Agents[0].AgentVersion != "" {
		t.Errorf("filtered and masked: %v", got)
	}
	n, err := e.admin.agent.CountAgents(t.Context(), &agentv1.CountAgentsRequest{Filter: &agentv1.CountAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}})
	if err != nil || n.Count != 1 {
		t.Errorf("CountAgents = %v, %v", n, err)
	}
}

func TestDebugAndHealth(t *testing.T) {
	e := start(t, nil)
	e.newAgent()
	info, err := e.admin.debug.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
	if err != nil || info.AgentsCount != 1 || info.EntriesCount != 0 || info.SvidChain[0].Id.Path != "/spire/server" {
		t.Errorf("GetInfo = %v, %v", info, err)
	}
	for _, service := range []string{"", "store"} {
		h, err := e.admin.health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || h.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("Check(%q) = %v, %v", service, h, err)
		}
	}
}

// TestRestart: agents, entries and the CA outlive the process.
func TestRestart(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	e.stop()
	wrong := e.conf
	wrong.TrustDomain = "other.org"
	other, err := server.New(wrong, "test", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "correct trust_domain") {
		t.Errorf("Run for another trust domain = %v", err)
	}
	again := run(t, e.conf)
	if !again.bundle.Equal(e.bundle) {
		t.Error("the bundle changed")
	}
	got, err := again.dial(a.cert).entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	if err != nil || len(got.Entries) != 1 || got.Entries[0].Id != w.Id {
		t.Errorf("after a restart: %v, %v", got, err)
	}
}

// TestStoreAway: without its store the server signs from memory and says why it can not write.
func TestStoreAway(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	pid := storeMember(t, e.conf.DataDir)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	storeHealth := func() healthv1.HealthCheckResponse_ServingStatus {
		h, err := e.admin.health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "store"})
		if err != nil {
			t.Fatal(err)
		}
		return h.Status
	}
	waitFor(t, "NOT_SERVING", func() bool { return storeHealth() == healthv1.HealthCheckResponse_NOT_SERVING })

	e.sign(a, w.Id, newKey(t))
	if got, _ := syncAll(t, a); len(got) != 1 {
		t.Errorf("%d entries from memory", len(got))
	}
	resp, err := e.admin.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{ParentId: a.id, SpiffeId: sid("/v"), Selectors: sel("unix", "uid:0")}}})
	if err != nil || codes.Code(resp.Results[0].Status.Code) != codes.Unavailable || !strings.Contains(resp.Results[0].Status.Message, "the store is not available: no answer for") {
		t.Errorf("create without a store: %v, %v", resp, err)
	}
	_, err = e.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: a.id})
	wantCode(t, "ban without a store", err, codes.Unavailable)
	if h, err := e.admin.health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || h.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("the server itself: %v, %v", h, err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "SERVING", func() bool { return storeHealth() == healthv1.HealthCheckResponse_SERVING })
	e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/v"), Selectors: sel("unix", "uid:0")})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s", what)
		}
	}
}

// storeMember finds the member's process by its folder.
func storeMember(t *testing.T, dataDir string) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if cmd, _ := os.ReadFile(f); bytes.Contains(cmd, []byte(member.Command+"\x00")) && bytes.Contains(cmd, []byte(dataDir)) {
			pid, err := strconv.Atoi(strings.Split(f, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no store-member for " + dataDir)
	return 0
}
