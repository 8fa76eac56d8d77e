// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// caller is the workload that the fake attestor answers with.
type caller struct {
	set  selectors.Set
	done chan struct{}

	changed chan struct{}

	mu    sync.Mutex
	gone  error // what Check says
	check int
}

func (c *caller) Facts() *selectors.Facts  { return &selectors.Facts{} }
func (c *caller) Selectors() selectors.Set { return c.set }
func (c *caller) Done() <-chan struct{}    { return c.done }
func (c *caller) Changed() <-chan struct{} { return c.changed }
func (c *caller) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check++
	return c.gone
}

func (c *caller) becomes(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = err
}

// signer is the far side of agent/svids: a CA that can be made to fail.
type signer struct {
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
	err  error
	next int64
}

func (s *signer) SignX509SVID(_ context.Context, e *selectors.Entry, csr []byte, _ *selectors.Facts) ([]*x509.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	s.next++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(s.next), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{e.SPIFFEID.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, req.PublicKey, s.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return []*x509.Certificate{cert}, err
}

// token signs the claims with the trust domain's key.
func (s *signer) token(e *selectors.Entry, kid, typ string, claims map[string]any) (trust.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return trust.Token{}, s.err
	}
	s.next++
	claims["sub"], claims["iat"], claims["exp"], claims["n"] = e.SPIFFEID.String(), time.Now().Unix(), time.Now().Add(time.Hour).Unix(), s.next
	text, err := signJWT(s.key, kid, typ, claims)
	if err != nil {
		return trust.Token{}, err
	}
	return trust.ReadToken(text, e.SPIFFEID)
}

func signJWT(key crypto.Signer, kid, typ string, claims map[string]any) (string, error) {
	j, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", err
	}
	return jwt.Signed(j).Claims(claims).Serialize()
}

func (s *signer) SignJWTSVID(_ context.Context, e *selectors.Entry, audience []string, _ *selectors.Facts) (trust.Token, error) {
	return s.token(e, "jwt", "JWT", map[string]any{"aud": audience, "private": true})
}

func (s *signer) SignWITSVID(_ context.Context, e *selectors.Entry, public []byte, algorithm string, _ *selectors.Facts) (trust.Token, error) {
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return trust.Token{}, err
	}
	return s.token(e, "wit", "wit+jwt", map[string]any{"cnf": map[string]any{"jwk": jose.JSONWebKey{Key: key, Algorithm: algorithm}}})
}

func (s *signer) fails(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

type refusal struct{}

func (refusal) Error() string { return "the server says no" }
func (refusal) Refused() bool { return true }

// fixture is a served Workload API with a real svids.Manager behind it.
type fixture struct {
	pb.SpiffeWorkloadAPIClient
	conn    *grpc.ClientConn
	manager *svids.Manager
	signer  *signer
	caller  *caller
	denials *delivery.Denials

	mu       sync.Mutex
	denied   error // what the attestor says
	logs     bytes.Buffer
	recorded []history.Delivery
}

func (f *fixture) Record(list ...history.Delivery) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recorded = append(f.recorded, list...)
}

func (f *fixture) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs.Write(p)
}

func serve(t *testing.T) *fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{signer: &signer{key: key}, caller: &caller{done: make(chan struct{}), changed: make(chan struct{}), set: selectors.NewSet(
		selectors.Selector{Type: "unix", Value: "uid:1"}, selectors.Selector{Type: "unix", Value: "gid:1"})}}
	log := slog.New(slog.NewTextHandler(f, nil))
	f.manager = svids.New(f.signer, log, time.Now)
	g := grpc.NewServer(Interceptors()...)
	f.denials = delivery.NewDenials()
	desk := delivery.New(delivery.Config{Attest: func(context.Context) (delivery.Workload, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.caller, f.denied
	}, SVIDs: f.manager, History: f, Denials: f.denials, Logger: log, Now: time.Now})
	New(Config{Desk: desk, ForeignClaims: []string{"allowed"}}).Register(g)
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	f.SpiffeWorkloadAPIClient, f.conn = pb.NewSpiffeWorkloadAPIClient(conn), conn
	return f
}

func entry(id string, revision int64, demands ...string) *selectors.Entry {
	e := &selectors.Entry{ID: id, SPIFFEID: spiffeid.RequireFromPath(td, "/"+id), Revision: revision}
	for _, d := range demands {
		e.Selectors = append(e.Selectors, selectors.Selector{Type: "unix", Value: d})
	}
	return e
}

func (f *fixture) bundle(t *testing.T, n int64) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, f.signer.key.Public(), f.signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(td)
	b.AddX509Authority(cert)
	if err := errors.Join(b.AddJWTAuthority("jwt", f.signer.key.Public()), b.AddWITAuthority("wit", f.signer.key.Public())); err != nil {
		t.Fatal(err)
	}
	f.manager.Trust(trust.Change{Own: bundleOf(t, b)})
}

func bundleOf(t *testing.T, b *spiffebundle.Bundle) *trust.Bundle {
	t.Helper()
	out, err := trust.New(b, trust.Tainted{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func call(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (f *fixture) fetch(t *testing.T) grpc.ServerStreamingClient[pb.X509SVIDResponse] {
	t.Helper()
	st, err := f.FetchX509SVID(call(t), &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func receive(t *testing.T, st grpc.ServerStreamingClient[pb.X509SVIDResponse]) *pb.X509SVIDResponse {
	t.Helper()
	m, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ends reads the stream's end and nothing before it.
func ends(t *testing.T, st grpc.ServerStreamingClient[pb.X509SVIDResponse], want codes.Code, text string) {
	t.Helper()
	m, err := st.Recv()
	if status.Code(err) != want || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, %v; want %v with %q", m, err, want, text)
	}
}

func TestSecurityHeader(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	for _, md := range [][]string{nil, {"workload.spiffe.io", "false"}, {"workload.spiffe.io", "TRUE"}, {"workload.spiffe.io", "true", "workload.spiffe.io", "true"}} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), md...)
		st, err := f.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		ends(t, st, codes.InvalidArgument, "workload.spiffe.io")
		if _, err := f.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a unary call with %v: %v", md, err)
		}
	}
}

func TestNotAttested(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	f.mu.Lock()
	f.denied = errors.New("two processes hold the connection")
	f.mu.Unlock()
	ends(t, f.fetch(t), codes.PermissionDenied, "two processes hold the connection")
	st, err := f.FetchX509Bundles(call(t), &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles: %v", err)
	}
}

func TestNoEntries(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:2")}, nil, 1)
	ends(t, f.fetch(t), codes.PermissionDenied, "no identity issued")
	st, err := f.FetchX509Bundles(call(t), &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles without an identity: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.logs.String(); !strings.Contains(got, "nearest=spiffe://example.org/a") || !strings.Contains(got, "lacks=unix:uid:2") {
		t.Errorf("the log does not say what is missing: %s", got)
	}
}

func TestServerAwayAndServerSaysNo(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	f.signer.fails(errors.New("connection refused"))
	ends(t, f.fetch(t), codes.Unavailable, "try again")
	f.signer.fails(refusal{})
	ends(t, f.fetch(t), codes.PermissionDenied, "no identity issued")
	f.signer.fails(nil)
	receive(t, f.fetch(t))
}

// What one message holds: all SVIDs, oldest entry first, each with a key that fits and the bundle.
func TestMessage(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	b := entry("b", 0, "uid:1", "gid:1")
	b.Hint = "second"
	b.CreatedAt = time.Unix(2, 0)
	f.manager.Entries(true, []*selectors.Entry{b, entry("a", 0, "uid:1"), entry("other", 0, "uid:9")}, nil, 1)
	m := receive(t, f.fetch(t))
	if len(m.Svids) != 2 || m.Svids[0].SpiffeId != "spiffe://example.org/a" || m.Svids[1].SpiffeId != "spiffe://example.org/b" || m.Svids[1].Hint != "second" {
		t.Fatalf("got %v", m.Svids)
	}
	for _, s := range m.Svids {
		leaf, err := x509.ParseCertificate(s.X509Svid)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(s.X509SvidKey)
		if err != nil {
			t.Fatal(err)
		}
		if !key.(*ecdsa.PrivateKey).PublicKey.Equal(leaf.PublicKey) {
			t.Errorf("%s: the key is not the certificate's", s.SpiffeId)
		}
		if _, err := x509.ParseCertificate(s.Bundle); err != nil {
			t.Errorf("%s: bundle: %v", s.SpiffeId, err)
		}
	}
	st, err := f.FetchX509Bundles(call(t), &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := st.Recv()
	if err != nil || !bytes.Equal(got.Bundles["spiffe://example.org"], m.Svids[0].Bundle) {
		t.Errorf("bundles: %v, %v", got, err)
	}
}

// A message comes for each change that the caller would see, and for nothing else.
func TestNoDuplicates(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	st := f.fetch(t)
	seen := [][]byte{receive(t, st).Svids[0].X509Svid}
	messages := make(chan *pb.X509SVIDResponse, 10)
	go func() {
		defer close(messages)
		for {
			m, err := st.Recv()
			if err != nil {
				return
			}
			messages <- m
		}
	}()
	quiet := func(what string) {
		t.Helper()
		select {
		case m := <-messages:
			t.Errorf("%s: a message came: %v", what, m)
		case <-time.After(50 * time.Millisecond):
		}
	}
	next := func(what string) *pb.X509SVIDResponse {
		t.Helper()
		select {
		case m := <-messages:
			return m
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: no message came", what)
			return nil
		}
	}
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 2)
	quiet("the same entries again")
	f.manager.Entries(false, []*selectors.Entry{entry("x", 0, "uid:7")}, nil, 3)
	quiet("somebody else's entry")
	for revision := range int64(3) {
		f.manager.Entries(false, []*selectors.Entry{entry("a", revision+1, "uid:1")}, nil, 4+revision)
		m := next("a new revision")
		for _, old := range seen {
			if bytes.Equal(old, m.Svids[0].X509Svid) {
				t.Error("an SVID came twice")
			}
		}
		seen = append(seen, m.Svids[0].X509Svid)
		quiet("after a revision")
	}
	f.bundle(t, 2)
	if m := next("a new bundle"); !bytes.Equal(m.Svids[0].X509Svid, seen[len(seen)-1]) {
		t.Error("a new bundle made a new SVID")
	}
	quiet("after the bundle")
}

// A caller that changed receives nothing more, and one that lost its entries or ended is told so.
func TestStreamEnds(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(f *fixture)
		code    codes.Code
		text    string
	}{
		"changed": {func(f *fixture) {
			f.caller.becomes(errors.New("it executed another program"))
			f.manager.Entries(false, []*selectors.Entry{entry("a", 1, "uid:1")}, nil, 2)
		}, codes.PermissionDenied, "it executed another program"},
		"deleted":  {func(f *fixture) { f.manager.Entries(false, nil, []string{"a"}, 2) }, codes.PermissionDenied, "no identity issued"},
		"narrowed": {func(f *fixture) { f.manager.Entries(false, []*selectors.Entry{entry("a", 1, "uid:2")}, nil, 2) }, codes.PermissionDenied, "no identity issued"},
		"told": {func(f *fixture) {
			f.caller.becomes(errors.New("it executed another program"))
			close(f.caller.changed)
		}, codes.PermissionDenied, "it executed another program"},
		"exited": {func(f *fixture) { close(f.caller.done) }, codes.PermissionDenied, "the caller has exited"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			f.bundle(t, 1)
			f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
			st := f.fetch(t)
			receive(t, st)
			c.happens(f)
			ends(t, st, c.code, c.text)
		})
	}
}

// Even the first message is checked: attestation and signing take time.
func TestCheckedBeforeTheFirstMessage(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	f.caller.becomes(errors.New("it has exited"))
	ends(t, f.fetch(t), codes.PermissionDenied, "it has exited")
	if f.caller.check == 0 {
		t.Error("not checked")
	}
}

// A call that comes before the agent has entries waits for them.
func TestWaitsForEntries(t *testing.T) {
	f := serve(t)
	st := f.fetch(t)
	time.AfterFunc(100*time.Millisecond, func() {
		f.bundle(t, 1)
		f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	})
	if m := receive(t, st); len(m.Svids) != 1 {
		t.Errorf("got %v", m)
	}
}

// Some identities are better than none: what could not be issued is left out and logged.
func TestOneOfTwoRefused(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1")}, nil, 1)
	st := f.fetch(t)
	receive(t, st)
	f.signer.fails(refusal{})
	f.manager.Entries(false, []*selectors.Entry{entry("b", 0, "uid:1")}, nil, 2)
	if m := receive(t, f.fetch(t)); len(m.Svids) != 1 || m.Svids[0].SpiffeId != "spiffe://example.org/a" {
		t.Errorf("got %v", m.Svids)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.logs.String(); !strings.Contains(got, "some identities of a workload could not be issued") {
		t.Error(fmt.Sprint("the log does not say it: ", got))
	}
}

// TestHistory: what was sent is recorded, once for each message and identity, and nothing else.
func TestHistory(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1"), entry("b", 0, "gid:1")}, nil, 1)
	st := f.fetch(t)
	first := receive(t, st)
	f.manager.Entries(false, nil, []string{"b"}, 2)
	receive(t, st)
	f.manager.Entries(false, nil, []string{"a"}, 3)
	ends(t, st, codes.PermissionDenied, "no identity issued")
	f.mu.Lock()
	defer f.mu.Unlock()
	var got []string
	for _, d := range f.recorded {
		got = append(got, d.Entry)
	}
	if fmt.Sprint(got) != "[a b a]" {
		t.Fatalf("recorded %s", got)
	}
	cert, err := x509.ParseCertificate(first.Svids[0].X509Svid)
	if err != nil {
		t.Fatal(err)
	}
	if d := f.recorded[0]; d.SPIFFEID != first.Svids[0].SpiffeId || d.Serial != cert.SerialNumber.String() || d.Tier == "" || time.Since(d.Time) > time.Minute {
		t.Errorf("recorded %+v", d)
	}
}

// What a denied caller is told leads an operator to the rest, and tells the caller nothing of it.
func TestDenialReference(t *testing.T) {
	f := serve(t)
	f.bundle(t, 1)
	f.manager.Entries(true, []*selectors.Entry{entry("a", 0, "uid:1", "user:secret")}, nil, 1)
	_, err := f.fetch(t).Recv()
	_, ref, ok := strings.Cut(strings.TrimSuffix(status.Convert(err).Message(), ")"), "reference ")
	if !ok || strings.Contains(err.Error(), "secret") {
		t.Fatalf("the caller is told %q", err)
	}
	x, ok := f.denials.Find(ref)
	if !ok || x.Facts == nil || len(x.Nearest) != 1 || x.Nearest[0].Missing.String() != "unix:user:secret" {
		t.Errorf("the operator is told %+v", x)
	}
}
