// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) {
	code := storetest.Main(m)
	if err := checkAPITable(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := swtpmtest.Clean(); err != nil && code == 0 {
		code = 1
	}
	os.Exit(code)
}

var td = spiffeid.RequireTrustDomainFromString("example.org")

// clients are all services over one connection.
type clients struct {
	conn   *grpc.ClientConn
	agent  agentv1.AgentClient
	bundle bundlev1.BundleClient
	entry  entryv1.EntryClient
	svid   svidv1.SVIDClient
	debug  debugv1.DebugClient
	health healthv1.HealthClient
	node   nodev1.NodeClient
	nodes  adminv1.NodeAdminClient
	trust  trustdomainv1.TrustDomainClient
	local  authorityv1.LocalAuthorityClient
	logger loggerv1.LoggerClient
}

func newClients(t *testing.T, target string, opts ...grpc.DialOption) *clients {
	t.Helper()
	conn, err := grpc.NewClient(target, append(opts, record(t)...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &clients{conn, agentv1.NewAgentClient(conn), bundlev1.NewBundleClient(conn), entryv1.NewEntryClient(conn), svidv1.NewSVIDClient(conn),
		debugv1.NewDebugClient(conn), healthv1.NewHealthClient(conn), nodev1.NewNodeClient(conn), adminv1.NewNodeAdminClient(conn),
		trustdomainv1.NewTrustDomainClient(conn), authorityv1.NewLocalAuthorityClient(conn), loggerv1.NewLoggerClient(conn)}
}

// env is a running server.
type env struct {
	t      *testing.T
	conf   server.Config
	addr   string
	admin  *clients
	stop   func()
	logs   *logBuffer
	bundle *x509bundle.Bundle
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func start(t *testing.T, change func(*server.Config)) *env {
	t.Helper()
	dir := t.TempDir()
	conf := server.Config{
		TrustDomain: "example.org", BindAddress: "127.0.0.1", BindPort: freePort(t),
		SocketPath: filepath.Join(dir, "run", "admin.sock"), DataDir: filepath.Join(dir, "data"),
		JoinToken: &server.JoinTokenConfig{}, AllowWithoutEvidence: []string{"join_token"}, ForeignSelectors: []string{"s"},
	}
	if change != nil {
		change(&conf)
	}
	return run(t, conf)
}

func run(t *testing.T, conf server.Config) *env {
	t.Helper()
	e := &env{t: t, conf: conf, addr: fmt.Sprintf("127.0.0.1:%d", conf.BindPort), logs: &logBuffer{}}
	s, err := server.New(conf, "test", e.logs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server does not stop")
		}
	})
	t.Cleanup(func() {
		e.stop()
		if t.Failed() {
			t.Log(e.logs.String())
		}
	})
	e.admin = newClients(t, "unix://"+conf.SocketPath, grpc.WithTransportCredentials(insecure.NewCredentials()))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := e.admin.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}, grpc.WaitForReady(false))
		if err == nil {
			e.bundle = bundleOf(t, b)
			return e
		}
		if time.Now().After(deadline) || len(done) > 0 {
			t.Fatalf("the server does not start: %v\n%s", err, e.logs)
		}
	}
}

func bundleOf(t *testing.T, b *types.Bundle) *x509bundle.Bundle {
	t.Helper()
	out := x509bundle.New(td)
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.Asn1)
		if err != nil {
			t.Fatal(err)
		}
		out.AddX509Authority(cert)
	}
	return out
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// dial connects by TCP as SPIRE's agent does: any server name, but the server's SPIFFE ID.
func (e *env) dial(cert *tls.Certificate) *clients {
	conf := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			id, _, err := x509svid.ParseAndVerify(raw, e.bundle)
			if err == nil && id.String() != "spiffe://example.org/spire/server" {
				err = fmt.Errorf("the server is %s", id)
			}
			return err
		},
	}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	return newClients(e.t, e.addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCSR(t *testing.T, key *ecdsa.PrivateKey, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// agent is an attested join token agent.
type agent struct {
	id   *types.SPIFFEID
	cert *tls.Certificate
	*clients
}

func (a *agent) leaf() *x509.Certificate {
	cert, err := x509.ParseCertificate(a.cert.Certificate[0])
	if err != nil {
		panic(err)
	}
	return cert
}

func (e *env) token(agentID *types.SPIFFEID) string {
	e.t.Helper()
	tok, err := e.admin.agent.CreateJoinToken(e.t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, AgentId: agentID})
	if err != nil {
		e.t.Fatal(err)
	}
	return tok.Value
}

// attest runs the attestation stream over c.
func attest(t *testing.T, c *clients, typ string, payload []byte, key *ecdsa.PrivateKey) (*agentv1.AttestAgentResponse_Result, error) {
	t.Helper()
	stream, err := c.agent.AttestAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: typ, Payload: payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, key, &x509.CertificateRequest{})}, // no URI SAN, as SPIRE's
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return resp.GetResult(), nil
}

func (e *env) newAgent() *agent { e.t.Helper(); return e.newAgentWith(e.token(nil)) }

func (e *env) newAgentWith(token string) *agent {
	e.t.Helper()
	key := newKey(e.t)
	res, err := attest(e.t, e.dial(nil), "join_token", []byte(token), key)
	if err != nil {
		e.t.Fatal(err)
	}
	return e.agentOf(res.Svid, key)
}

func (e *env) agentOf(svid *types.X509SVID, key *ecdsa.PrivateKey) *agent {
	cert := &tls.Certificate{Certificate: svid.CertChain, PrivateKey: key}
	return &agent{svid.Id, cert, e.dial(cert)}
}

// watch opens a feed and says the first word.
func (c *clients) watch(ctx context.Context, t *testing.T, first *nodev1.WatchRequest) nodev1.Node_WatchClient {
	t.Helper()
	stream, err := c.node.Watch(ctx)
	if err == nil {
		err = stream.Send(first)
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func sid(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: "example.org", Path: path}
}

func sel(s ...string) (out []*types.Selector) {
	for i := 0; i < len(s); i += 2 {
		out = append(out, &types.Selector{Type: s[i], Value: s[i+1]})
	}
	return out
}

func (e *env) create(es ...*types.Entry) []*types.Entry {
	e.t.Helper()
	resp, err := e.admin.entry.BatchCreateEntry(e.t.Context(), &entryv1.BatchCreateEntryRequest{Entries: es})
	if err != nil {
		e.t.Fatal(err)
	}
	var out []*types.Entry
	for _, r := range resp.Results {
		if r.Status.Code != 0 || r.Status.Message != "OK" {
			e.t.Fatalf("create: %v", r.Status)
		}
		out = append(out, r.Entry)
	}
	return out
}

func wantCode(t *testing.T, what string, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// wantDenied checks the code and the reason that SPIRE's agents decide on.
func wantDenied(t *testing.T, what string, err error, reasons ...types.PermissionDeniedDetails_Reason) {
	t.Helper()
	wantCode(t, what, err, codes.PermissionDenied)
	var got []types.PermissionDeniedDetails_Reason
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			got = append(got, p.Reason)
		}
	}
	if !slices.Equal(got, reasons) {
		t.Errorf("%s: details %v, want %v", what, got, reasons)
	}
}
