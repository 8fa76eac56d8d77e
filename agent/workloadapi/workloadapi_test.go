// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/selectors"
)

// fixture is a served Workload API.
type fixture struct {
	pb.SpiffeWorkloadAPIClient
	*deliverytest.Fixture
	conn *grpc.ClientConn
}

func serve(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{Fixture: deliverytest.New(t)}
	g := grpc.NewServer(Interceptors()...)
	New(Config{Desk: f.Desk, ForeignClaims: []string{"allowed"}}).Register(g)
	RegisterHealth(g, f.Desk.Ready())
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
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
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
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	f.Deny(errors.New("two processes hold the connection"))
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
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:2")}, nil, 1)
	ends(t, f.fetch(t), codes.PermissionDenied, "no identity issued")
	st, err := f.FetchX509Bundles(call(t), &pb.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles without an identity: %v", err)
	}
	if got := f.Logs(); !strings.Contains(got, "nearest=spiffe://example.org/a") || !strings.Contains(got, "lacks=unix:uid:2") {
		t.Errorf("the log does not say what is missing: %s", got)
	}
}

func TestServerAwayAndServerSaysNo(t *testing.T) {
	f := serve(t)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	f.Signer.Fails(errors.New("connection refused"))
	ends(t, f.fetch(t), codes.Unavailable, "try again")
	f.Signer.Fails(deliverytest.Refusal{})
	ends(t, f.fetch(t), codes.PermissionDenied, "no identity issued")
	f.Signer.Fails(nil)
	receive(t, f.fetch(t))
}

// What one message holds: all SVIDs, oldest entry first, each with a key that fits and the bundle.
func TestMessage(t *testing.T) {
	f := serve(t)
	f.Bundle(t, 1)
	b := deliverytest.Entry("b", 0, "uid:1", "gid:1")
	b.Hint = "second"
	b.CreatedAt = time.Unix(2, 0)
	f.Manager.Entries(true, []*selectors.Entry{b, deliverytest.Entry("a", 0, "uid:1"), deliverytest.Entry("other", 0, "uid:9")}, nil, 1)
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
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
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
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 2)
	quiet("the same entries again")
	f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("x", 0, "uid:7")}, nil, 3)
	quiet("somebody else's entry")
	for revision := range int64(3) {
		f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("a", revision+1, "uid:1")}, nil, 4+revision)
		m := next("a new revision")
		for _, old := range seen {
			if bytes.Equal(old, m.Svids[0].X509Svid) {
				t.Error("an SVID came twice")
			}
		}
		seen = append(seen, m.Svids[0].X509Svid)
		quiet("after a revision")
	}
	f.Bundle(t, 2)
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
			f.Workload.Becomes(errors.New("it executed another program"))
			f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, 2)
		}, codes.PermissionDenied, "it executed another program"},
		"deleted": {func(f *fixture) { f.Manager.Entries(false, nil, []string{"a"}, 2) }, codes.PermissionDenied, "no identity issued"},
		"narrowed": {func(f *fixture) {
			f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:2")}, nil, 2)
		}, codes.PermissionDenied, "no identity issued"},
		"told": {func(f *fixture) {
			f.Workload.Becomes(errors.New("it executed another program"))
			close(f.Workload.Change)
		}, codes.PermissionDenied, "it executed another program"},
		"exited": {func(f *fixture) { close(f.Workload.Exit) }, codes.PermissionDenied, "the caller has exited"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			f.Bundle(t, 1)
			f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
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
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	f.Workload.Becomes(errors.New("it has exited"))
	ends(t, f.fetch(t), codes.PermissionDenied, "it has exited")
	if f.Workload.Checks() == 0 {
		t.Error("not checked")
	}
}

// A call that comes before the agent has entries waits for them.
func TestWaitsForEntries(t *testing.T) {
	f := serve(t)
	st := f.fetch(t)
	time.AfterFunc(100*time.Millisecond, func() {
		f.Bundle(t, 1)
		f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	})
	if m := receive(t, st); len(m.Svids) != 1 {
		t.Errorf("got %v", m)
	}
}

// Some identities are better than none: what could not be issued is left out and logged.
func TestOneOfTwoRefused(t *testing.T) {
	f := serve(t)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	st := f.fetch(t)
	receive(t, st)
	f.Signer.Fails(deliverytest.Refusal{})
	f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("b", 0, "uid:1")}, nil, 2)
	if m := receive(t, f.fetch(t)); len(m.Svids) != 1 || m.Svids[0].SpiffeId != "spiffe://example.org/a" {
		t.Errorf("got %v", m.Svids)
	}
	if got := f.Logs(); !strings.Contains(got, "some identities of a workload could not be issued") {
		t.Error(fmt.Sprint("the log does not say it: ", got))
	}
}

// TestHistory: what was sent is recorded, once for each message and identity, and nothing else.
func TestHistory(t *testing.T) {
	f := serve(t)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1"), deliverytest.Entry("b", 0, "gid:1")}, nil, 1)
	st := f.fetch(t)
	first := receive(t, st)
	f.Manager.Entries(false, nil, []string{"b"}, 2)
	receive(t, st)
	f.Manager.Entries(false, nil, []string{"a"}, 3)
	ends(t, st, codes.PermissionDenied, "no identity issued")
	var got []string
	for _, d := range f.Recorded() {
		got = append(got, d.Entry)
	}
	if fmt.Sprint(got) != "[a b a]" {
		t.Fatalf("recorded %s", got)
	}
	cert, err := x509.ParseCertificate(first.Svids[0].X509Svid)
	if err != nil {
		t.Fatal(err)
	}
	if d := f.Recorded()[0]; d.SPIFFEID != first.Svids[0].SpiffeId || d.Serial != cert.SerialNumber.String() || d.Tier == "" || time.Since(d.Time) > time.Minute {
		t.Errorf("recorded %+v", d)
	}
}

// What a denied caller is told leads an operator to the rest, and tells the caller nothing of it.
func TestDenialReference(t *testing.T) {
	f := serve(t)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1", "user:secret")}, nil, 1)
	_, err := f.fetch(t).Recv()
	_, ref, ok := strings.Cut(strings.TrimSuffix(status.Convert(err).Message(), ")"), "reference ")
	if !ok || strings.Contains(err.Error(), "secret") {
		t.Fatalf("the caller is told %q", err)
	}
	x, ok := f.Memory.Denial(ref)
	if !ok || x.Facts == nil || len(x.Nearest) != 1 || x.Nearest[0].Missing.String() != "unix:user:secret" {
		t.Errorf("the operator is told %+v", x)
	}
}
