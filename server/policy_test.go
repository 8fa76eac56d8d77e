// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
)

// writePolicy writes a policy of the package and returns its path.
func writePolicy(t testing.TB, pkg, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.rego")
	if err := os.WriteFile(path, []byte("package "+pkg+"\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func authorization(t *testing.T, mode, pkg, text string) func(*server.Config) {
	return func(c *server.Config) {
		c.AdminIDs = []string{"spiffe://example.org/ops"}
		c.Authorization = &server.AuthorizationConfig{PolicyPath: writePolicy(t, pkg, text), Mode: mode, Timeout: "30s"}
		c.Roles = []server.RoleConfig{{
			Name: "pay", IDs: []string{"spiffe://example.org/ci"}, Verbs: []string{"entry.read", "entry.write"},
			SPIFFEIDs: []string{"spiffe://example.org/pay/*"}, Parents: []string{"spiffe://example.org/*"}, SelectorTypes: []string{"unix"},
		}}
	}
}

func wantText(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, text)
	}
}

// TestAuthorizationPolicy: beside the table and the roles, by who calls and by what he sends.
func TestAuthorizationPolicy(t *testing.T) {
	e := start(t, authorization(t, "", "assay.authz", `
default allow := false
allow if {
	input.verb == "entry.read"
	input.caller.kind == "role"
	input.caller.roles == ["pay"]
}
allow if {
	input.method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
	every e in input.request.entries { e.x509_svid_ttl <= 600 }
}
allow if {
	endswith(input.method, "/CreateJoinToken")
	input.caller.spiffe_id == "spiffe://example.org/ops"
	not input.request.token
}
reason contains "an admin reads nothing here" if input.caller.kind == "admin"
`))
	a := e.newAgent() // attested: agents and the local socket are not asked about
	ops, ci, other := e.mint("/ops"), e.mint("/ci"), e.mint("/w")
	list := func(c *clients) error { return second(c.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})) }
	if err := list(e.admin); err != nil {
		t.Errorf("the local socket: %v", err)
	}
	if err := list(ci); err != nil {
		t.Errorf("table and policy allow: %v", err)
	}
	wantText(t, "the table allows, the policy does not", list(ops), codes.PermissionDenied, "an admin reads nothing here (denied by policy ")
	wantText(t, "neither the table nor a role", list(other), codes.PermissionDenied, "authorization denied for method")
	create := func(c *clients, path string, ttl int32) (*entryv1.BatchCreateEntryResponse, error) {
		return c.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{
			{ParentId: a.id, SpiffeId: sid(path), Selectors: sel("unix", "uid:1"), X509SvidTtl: ttl}}})
	}
	if resp, err := create(ci, "/pay/a", 600); err != nil || resp.Results[0].Status.Code != 0 {
		t.Errorf("a short entry: %v, %v", resp, err)
	}
	wantText(t, "a long entry", second(create(ci, "/pay/b", 601)), codes.PermissionDenied, "denied by policy")
	if resp, err := create(ci, "/other", 600); err != nil || codes.Code(resp.Results[0].Status.Code) != codes.PermissionDenied {
		t.Errorf("the role's bounds stay: %v, %v", resp, err)
	}
	// The token itself is not shown to the policy.
	if _, err := ops.agent.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "secret"}); err != nil {
		t.Errorf("the policy saw the token: %v", err)
	}
	if _, err := a.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Errorf("anyone's method: %v", err)
	}
}

// TestPolicyReplacesTable: for operators' methods only, and never for who showed nothing.
func TestPolicyReplacesTable(t *testing.T) {
	e := start(t, authorization(t, "replace", "assay.authz", `
default allow := false
allow if input.caller.spiffe_id == "spiffe://example.org/w"
allow if { input.caller.local; not endswith(input.method, "/BanAgent") }
reason := sprintf("not for a %s", [input.caller.kind])
`))
	a, w, ops := e.newAgent(), e.mint("/w"), e.mint("/ops")
	list := func(c *clients) error { return second(c.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})) }
	if err := list(w); err != nil {
		t.Errorf("whom only the policy allows: %v", err)
	}
	wantText(t, "an admin", list(ops), codes.PermissionDenied, "not for a admin")
	wantText(t, "an agent", list(a.clients), codes.PermissionDenied, "not for a node")
	wantText(t, "no certificate", list(e.dial(nil)), codes.PermissionDenied, "authorization denied")
	wantText(t, "the local socket", second(e.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: a.id})), codes.PermissionDenied, "not for a local")
	// What is an agent's stays an agent's, though the policy would let the workload do anything.
	wantCode(t, "an agent's method", second(w.node.SignX509SVID(t.Context(), &nodev1.SignX509SVIDRequest{})), codes.PermissionDenied)
	wantCode(t, "a nested server's method", second(w.svid.NewDownstreamX509CA(t.Context(), &svidv1.NewDownstreamX509CARequest{})), codes.PermissionDenied)
	if _, err := a.agent.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); status.Code(err) == codes.PermissionDenied {
		t.Errorf("an agent's own method: %v", err)
	}
	if _, err := e.admin.health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("the socket's own method: %v", err)
	}
}

// TestBrokenAuthorizationPolicy: a policy that has no answer lets nobody in, and says so.
func TestBrokenAuthorizationPolicy(t *testing.T) {
	e := start(t, authorization(t, "", "assay.authz", `allow := input.caller.spiffe_id`))
	_, err := e.mint("/ops").entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	wantText(t, "no answer", err, codes.Internal, "allow is a string")
}

// TestSPIREPolicy: a policy in the shape of SPIRE's, with its data, decides for callers as there.
func TestSPIREPolicy(t *testing.T) {
	dir, err := filepath.Abs("rego/testdata/spire")
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, func(c *server.Config) {
		c.AdminIDs = []string{"spiffe://example.org/ops"}
		c.Authorization = &server.AuthorizationConfig{PolicyPath: dir, DataPath: filepath.Join(dir, "data.json"), Mode: "replace", Timeout: "30s"}
	})
	ops, finance := e.mint("/ops"), e.mint("/schedulers/finance")
	if _, err := ops.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{}); err != nil {
		t.Errorf("an admin lists: %v", err)
	}
	create := func(path string) error {
		return second(finance.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{
			{ParentId: sid("/spire/agent/x"), SpiffeId: sid(path), Selectors: sel("unix", "uid:1")}}}))
	}
	if err := create("/ns1/a"); err != nil {
		t.Errorf("within the namespace: %v", err)
	}
	wantCode(t, "without", create("/ns2/a"), codes.PermissionDenied)
	wantCode(t, "an admin creates", second(ops.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{ParentId: sid("/spire/agent/x"), SpiffeId: sid("/b"), Selectors: sel("unix", "uid:1")}}})), codes.PermissionDenied)
}

// issued asks for an SVID on evidence.
func issued(t *testing.T, a *agent, entry string, key *ecdsa.PrivateKey, uid uint32) (*x509.Certificate, *nodev1.SignX509SVIDResponse, error) {
	t.Helper()
	resp, err := a.node.SignX509SVID(t.Context(), &nodev1.SignX509SVIDRequest{EntryId: entry, Csr: newCSR(t, key, &x509.CertificateRequest{}), Facts: facts(uid)})
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(resp.Svid.CertChain[0])
	return leaf, resp, err
}

// TestIssuancePolicy: every way in which an agent gets an SVID passes the policy, whose files may change.
func TestIssuancePolicy(t *testing.T) {
	const text = `
result := {"allow": allow, "deny": deny, "ttl": 120, "minimum_tier": tier, "per_process": input.entry.spiffe_id != "spiffe://example.org/shared"}
default allow := false
allow if input.node.attestation_type == "join_token"
deny contains "strangers get no tokens" if { input.svid.kind == "jwt"; not "friend" in input.svid.audience }
deny contains "evidence is missing" if not input.facts
default tier := "t3"
tier := "t1" if input.entry.spiffe_id == "spiffe://example.org/strong"
`
	var path string
	e := start(t, func(c *server.Config) {
		path = writePolicy(t, "assay.issue", text)
		c.Issuance = &server.PolicyConfig{PolicyPath: path, Timeout: "30s"}
	})
	a, key := e.newAgent(), newKey(t)
	entry := func(path string) *types.Entry {
		return &types.Entry{ParentId: a.id, SpiffeId: sid(path), Selectors: sel("unix", "uid:7")}
	}
	strong, weak, shared := entry("/strong"), entry("/weak"), entry("/shared")
	shared.X509SvidTtl = 60
	es := e.create(strong, weak, shared)
	leaf, resp, err := issued(t, a, es[1].Id, key, 7)
	if err != nil || leaf.NotAfter.Sub(leaf.NotBefore) != 130*time.Second || !resp.PerProcess {
		t.Fatalf("a short SVID for one process: %v, %v", resp, err)
	}
	if leaf, resp, err = issued(t, a, es[2].Id, key, 7); err != nil || leaf.NotAfter.Sub(leaf.NotBefore) != 70*time.Second || resp.PerProcess {
		t.Errorf("an entry that is shorter already, shared: %v, %v", resp, err)
	}
	_, _, err = issued(t, a, es[0].Id, key, 7)
	wantText(t, "weak evidence", err, codes.PermissionDenied, "the evidence is of tier t2, and t1 is demanded (denied by policy ")
	_, _, err = issued(t, a, es[1].Id, key, 8)
	wantCode(t, "the entry's selectors come first", err, codes.FailedPrecondition)

	jwt := func(audience ...string) (*nodev1.SignJWTSVIDResponse, error) {
		return a.node.SignJWTSVID(t.Context(), &nodev1.SignJWTSVIDRequest{EntryId: es[1].Id, Audience: audience, Facts: facts(7)})
	}
	if resp, err := jwt("friend"); err != nil || resp.Svid.ExpiresAt-resp.Svid.IssuedAt != 120 {
		t.Errorf("a short JWT-SVID: %v, %v", resp, err)
	}
	wantText(t, "an audience", second(jwt("other")), codes.PermissionDenied, "strangers get no tokens")
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	wit, err := a.node.SignWITSVID(t.Context(), &nodev1.SignWITSVIDRequest{EntryId: es[1].Id, PublicKey: public, SigningAlgorithm: "ES256", Facts: facts(7)})
	if err != nil || wit.Svid.ExpiresAt-wit.Svid.IssuedAt != 120 || !wit.PerProcess {
		t.Errorf("a short WIT-SVID: %v, %v", wit, err)
	}
	// Agents of SPIRE's, which send no evidence.
	batch, err := a.svid.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: es[1].Id, Csr: newCSR(t, key, &x509.CertificateRequest{})}}})
	if err != nil || codes.Code(batch.Results[0].Status.Code) != codes.PermissionDenied || batch.Results[0].Svid != nil || !strings.Contains(batch.Results[0].Status.Message, "evidence is missing") {
		t.Errorf("without evidence: %v, %v", batch, err)
	}
	_, err = a.svid.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: es[1].Id, Audience: []string{"friend"}})
	wantText(t, "a JWT-SVID without evidence", err, codes.PermissionDenied, "evidence is missing")
	wits, err := a.svid.BatchNewWITSVID(t.Context(), &svidv1.BatchNewWITSVIDRequest{Params: []*svidv1.NewWITSVIDParams{{EntryId: es[1].Id, PublicKey: public, SigningAlgorithm: "ES256"}}})
	if err != nil || codes.Code(wits.Results[0].Status.Code) != codes.PermissionDenied || wits.Results[0].Svid != nil {
		t.Errorf("a WIT-SVID without evidence: %v, %v", wits, err)
	}
	if !strings.Contains(e.logs.String(), "policy=") {
		t.Error("the log of what was signed does not name the policy")
	}

	// A change that does not compile is told, and changes nothing; one that does is in force.
	health := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			h, err := e.admin.health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "issuance_policy"})
			if err == nil && h.Status == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("health %v, %v; want %v", h, err, want)
			}
		}
	}
	rewrite := func(text string) {
		if err := os.WriteFile(path, []byte("package assay.issue\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	health(healthv1.HealthCheckResponse_SERVING)
	rewrite("result := {")
	health(healthv1.HealthCheckResponse_NOT_SERVING)
	if _, _, err := issued(t, a, es[1].Id, key, 7); err != nil {
		t.Errorf("after a change that does not compile: %v", err)
	}
	rewrite(`result := {"allow": false, "deny": ["closed"]}`)
	health(healthv1.HealthCheckResponse_SERVING)
	_, _, err = issued(t, a, es[1].Id, key, 7)
	wantText(t, "after a change", err, codes.PermissionDenied, "closed")
	rewrite(`result := {"allow": true, "tll": 1}`)
	for deadline := time.Now().Add(60 * time.Second); status.Code(err) == codes.PermissionDenied && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		_, _, err = issued(t, a, es[1].Id, key, 7)
	}
	wantText(t, "an answer of another shape", err, codes.Internal, "tll is no field")
}

// TestPolicyConfig: a policy that can not be used stops the start, with its file and line.
func TestPolicyConfig(t *testing.T) {
	good := writePolicy(t, "assay.issue", `result := {"allow": true}`)
	for want, change := range map[string]func(*server.Config){
		"": func(c *server.Config) { c.Issuance = &server.PolicyConfig{PolicyPath: good} },
		"policy.rego:3: ": func(c *server.Config) {
			c.Issuance = &server.PolicyConfig{PolicyPath: writePolicy(t, "assay.issue", "\nresult := {")}
		},
		"no rule assay.authz":   func(c *server.Config) { c.Authorization = &server.AuthorizationConfig{PolicyPath: good} },
		"mode \"or\"":           func(c *server.Config) { c.Authorization = &server.AuthorizationConfig{PolicyPath: good, Mode: "or"} },
		"issuance: policy_path": func(c *server.Config) { c.Issuance = &server.PolicyConfig{PolicyPath: "p.rego"} },
		"policy_data_path":      func(c *server.Config) { c.Issuance = &server.PolicyConfig{PolicyPath: good, DataPath: "d.json"} },
		"issuance: timeout":     func(c *server.Config) { c.Issuance = &server.PolicyConfig{PolicyPath: good, Timeout: "0s"} },
		"no such file":          func(c *server.Config) { c.Issuance = &server.PolicyConfig{PolicyPath: "/none"} },
	} {
		c := server.Config{TrustDomain: "example.org", JoinToken: &server.JoinTokenConfig{}}
		change(&c)
		if err := c.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
