// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/servers"
	"github.com/assay-id/assay/agent/trust"
	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
)

// far is the server's side of the conversation over real TLS, as the test writes it.
type far struct {
	agentv1.UnimplementedAgentServer
	bundlev1.UnimplementedBundleServer
	nodepb.UnimplementedNodeServer
	entryv1.UnimplementedEntryServer
	svidv1.UnimplementedSVIDServer

	t    *testing.T
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	addr string
	log  *logText
	stop func()
	// tune changes a client before it runs.
	tune func(*Client)

	// admit judges an attestation; a challenge may be put to the agent. nil admits all.
	admit func(payload []byte, challenge func([]byte) []byte) error
	// watch holds a feed; nil pushes one entry and waits.
	watch func(stream nodepb.Node_WatchServer) error
	// requote holds a conversation; nil ends it at once with Unimplemented.
	requote func(stream nodepb.Node_RequoteServer) error
	polled  []*types.Entry
	asked   chan string // IDs, by an agent that syncs; nil: this server can not
	// foreign are the bundles that a server of SPIRE's has.
	foreign map[string]*types.Bundle

	mu       sync.Mutex
	attested int
	serial   int64
}

func startFar(t *testing.T, spire bool) *far {
	t.Helper()
	f := &far{t: t, log: &logText{t: t}, key: newKey(t)}
	f.ca = f.issue(nil, f.key.Public(), &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	f.listen("127.0.0.1:0", spire)
	return f
}

// twin is another server of the same trust domain.
func (f *far) twin() *far {
	other := &far{t: f.t, log: f.log, key: f.key, ca: f.ca, serial: 1000}
	other.listen("127.0.0.1:0", false)
	return other
}

func (f *far) listen(address string, spire bool) {
	t := f.t
	t.Helper()
	own := newKey(t)
	cert := f.issue(f.ca, own.Public(), &x509.Certificate{URIs: []*url.URL{spiffeid.RequireFromPath(td, "/spire/server").URL()}, KeyUsage: x509.KeyUsageDigitalSignature})
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: own}},
	})))
	agentv1.RegisterAgentServer(g, f)
	bundlev1.RegisterBundleServer(g, f)
	if spire {
		entryv1.RegisterEntryServer(g, f)
		svidv1.RegisterSVIDServer(g, f)
	} else {
		nodepb.RegisterNodeServer(g, f)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	f.stop = sync.OnceFunc(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (f *far) issue(parent *x509.Certificate, key crypto.PublicKey, tmpl *x509.Certificate) *x509.Certificate {
	f.mu.Lock()
	f.serial++
	tmpl.SerialNumber = big.NewInt(f.serial)
	f.mu.Unlock()
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key, f.key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

func (f *far) AttestAgent(st agentv1.Agent_AttestAgentServer) error {
	m, err := st.Recv()
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.attested++
	admit := f.admit
	f.mu.Unlock()
	challenge := func(data []byte) []byte {
		if err := st.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Challenge{Challenge: data}}); err != nil {
			return nil
		}
		m, err := st.Recv()
		if err != nil {
			return nil
		}
		return m.GetChallengeResponse()
	}
	if admit != nil {
		if err := admit(m.GetParams().Data.Payload, challenge); err != nil {
			return err
		}
	}
	csr, err := x509.ParseCertificateRequest(m.GetParams().Params.Csr)
	if err != nil {
		return err
	}
	id := &types.SPIFFEID{TrustDomain: td.Name(), Path: "/spire/agent/fake/1"}
	svid := f.issue(f.ca, csr.PublicKey, &x509.Certificate{URIs: []*url.URL{spiffeid.RequireFromPath(td, id.Path).URL()}, KeyUsage: x509.KeyUsageDigitalSignature})
	return st.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: &agentv1.AttestAgentResponse_Result{
		Reattestable: true, Svid: &types.X509SVID{CertChain: [][]byte{svid.Raw}, Id: id},
	}}})
}

func (f *far) attestations() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attested
}

func (f *far) admits(judge func(payload []byte, challenge func([]byte) []byte) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.admit = judge
}

func (f *far) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	return f.bundle(0, false), nil
}

func (f *far) GetFederatedBundle(_ context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.foreign[req.TrustDomain]; b != nil {
		return b, nil
	}
	return nil, status.Error(codes.NotFound, "bundle not found")
}

func workload(id string) *types.Entry {
	return &types.Entry{Id: id, SpiffeId: &types.SPIFFEID{TrustDomain: td.Name(), Path: "/" + id}, ParentId: &types.SPIFFEID{TrustDomain: td.Name(), Path: "/spire/agent/fake/1"},
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}}}
}

func (f *far) Watch(st nodepb.Node_WatchServer) error {
	if f.watch != nil {
		return f.watch(st)
	}
	return f.push(st)
}

func (f *far) push(st nodepb.Node_WatchServer) error {
	if err := st.Send(&nodepb.WatchResponse{Full: true, Entries: []*types.Entry{workload("pushed")}}); err != nil {
		return err
	}
	<-st.Context().Done()
	return st.Context().Err()
}

func (f *far) Requote(st nodepb.Node_RequoteServer) error {
	if f.requote == nil {
		return status.Error(codes.Unimplemented, "not here")
	}
	return f.requote(st)
}

func (f *far) GetAuthorizedEntries(context.Context, *entryv1.GetAuthorizedEntriesRequest) (*entryv1.GetAuthorizedEntriesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &entryv1.GetAuthorizedEntriesResponse{Entries: f.polled}, nil
}

func (f *far) BatchNewX509SVID(_ context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	out := &svidv1.BatchNewX509SVIDResponse{}
	for _, p := range req.Params {
		if p.EntryId != "polled" {
			out.Results = append(out.Results, &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{Code: int32(codes.NotFound), Message: "entry not found or not authorized"}})
			continue
		}
		csr, err := x509.ParseCertificateRequest(p.Csr)
		if err != nil {
			return nil, err
		}
		cert := f.issue(f.ca, csr.PublicKey, &x509.Certificate{URIs: []*url.URL{spiffeid.RequireFromPath(td, "/polled").URL()}})
		out.Results = append(out.Results, &svidv1.BatchNewX509SVIDResponse_Result{Status: &types.Status{Message: "OK"}, Svid: &types.X509SVID{CertChain: [][]byte{cert.Raw}}})
	}
	return out, nil
}

// NewJWTSVID signs for polled, whatever was asked.
func (f *far) NewJWTSVID(_ context.Context, req *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: f.key, KeyID: "kid"}}, nil)
	if err != nil {
		return nil, err
	}
	text, err := jwt.Signed(s).Claims(map[string]any{"sub": td.IDString() + "/polled", "aud": req.Audience, "iat": time.Now().Unix(), "exp": time.Now().Unix() + 60}).Serialize()
	return &svidv1.NewJWTSVIDResponse{Svid: &types.JWTSVID{Token: text}}, err
}

// sink notes what the client delivers.
type sink struct {
	entries chan string
	bundles func(trust.Change) <-chan struct{} // nil: every workload has them at once
}

func (s *sink) Trust(c trust.Change) <-chan struct{} {
	if s.bundles != nil {
		return s.bundles(c)
	}
	return settled
}

// settled is closed.
var settled = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (s *sink) Entries(full bool, changed []*selectors.Entry, _ []string, _ int64) {
	var names []string
	for _, e := range changed {
		names = append(names, e.ID)
	}
	s.entries <- fmt.Sprint(full, names)
}

func (s *sink) gets(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-s.entries:
		if got != want {
			t.Fatalf("delivered %s, want %s", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing delivered, want %s", want)
	}
}

// run starts a client against f and returns it, what it delivers, and how it ends.
func (f *far) run(a Attestor, history History) (*Client, *sink, <-chan error) {
	f.t.Helper()
	return f.runTo(a, history, &sink{entries: make(chan string, 16)})
}

func (f *far) runTo(a Attestor, history History, s *sink) (*Client, *sink, <-chan error) {
	f.t.Helper()
	b := spiffebundle.New(td)
	b.AddX509Authority(f.ca)
	c := New(Config{Servers: f.set(f.addr), TrustDomain: td, Bootstrap: &word{bundle: b}, Attestor: a, History: history, DataDir: f.t.TempDir(), Logger: slog.New(slog.NewTextHandler(f.log, nil)), Now: time.Now})
	c.SetSink(s)
	if f.tune != nil {
		f.tune(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, done := make(chan error, 1), make(chan struct{})
	go func() { defer close(done); ended <- c.Run(ctx) }()
	f.t.Cleanup(func() { cancel(); <-done; f.log.hasNot(f.t, "state that can not be") })
	return c, s, ended
}

func (f *far) set(addresses ...string) *servers.Set {
	f.t.Helper()
	s, err := servers.New(addresses, net.DefaultResolver.LookupHost)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// word is what an operator configured.
type word struct {
	mu      sync.Mutex
	bundle  *spiffebundle.Bundle
	text    string
	fetched int
}

func (w *word) Fetch(context.Context) (*spiffebundle.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fetched++
	return w.bundle, nil
}

func (w *word) Word() string { return w.text }

func (w *word) become(b *spiffebundle.Bundle) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bundle = b
}

// logText keeps what was logged.
type logText struct {
	t    *testing.T
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) has(t *testing.T, text string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !strings.Contains(l.text.String(), text) {
		t.Errorf("the log does not say %q:\n%s", text, l.text.String())
	}
}

func (l *logText) hasNot(t *testing.T, text string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.Contains(l.text.String(), text) {
		t.Errorf("the log says %q:\n%s", text, l.text.String())
	}
}
