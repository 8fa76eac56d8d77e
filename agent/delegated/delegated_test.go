// SPDX-License-Identifier: Apache-2.0

package delegated

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	pb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// house is a served API: callers are who asks, workloads what is asked for.
type house struct {
	pb.DelegatedIdentityClient
	callers, workloads *deliverytest.Fixture
	evidence           atomic.Bool
	gone               atomic.Bool
}

func open(t *testing.T) *house {
	t.Helper()
	h := &house{callers: deliverytest.New(t), workloads: deliverytest.New(t)}
	h.evidence.Store(true)
	h.callers.Bundle(t, 1)
	h.workloads.Bundle(t, 1)
	h.callers.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("other", 1, "uid:1"), deliverytest.Entry("proxy", 1, "gid:1")}, nil, 1)
	h.workloads.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, 1)
	g := grpc.NewServer()
	New(Config{Callers: h.callers.Desk, Workloads: h.workloads.Desk, Delegates: []spiffeid.ID{spiffeid.RequireFromPath(deliverytest.TD, "/proxy")},
		WantsEvidence: h.evidence.Load, Bundles: h.workloads.Manager.AllBundles, Logger: slog.New(slog.NewTextHandler(h.callers, nil)),
		Process: func(context.Context, int) (delivery.Workload, error) {
			if h.gone.Load() {
				return nil, process.ErrGone
			}
			return h.workloads.Workload, nil
		}}).Register(g)
	address := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", address)
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		check(t, <-served)
	})
	h.DelegatedIdentityClient = pb.NewDelegatedIdentityClient(conn)
	return h
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func asking(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (h *house) tokens(t *testing.T, req *pb.FetchJWTSVIDsRequest) (*pb.FetchJWTSVIDsResponse, error) {
	t.Helper()
	req.Audience = []string{"db"}
	return h.FetchJWTSVIDs(asking(t), req)
}

func (h *house) subscribe(t *testing.T, n int) grpc.ServerStreamingClient[pb.SubscribeToX509SVIDsResponse] {
	t.Helper()
	st, err := h.SubscribeToX509SVIDs(asking(t), &pb.SubscribeToX509SVIDsRequest{Pid: 7})
	check(t, err)
	if m, err := st.Recv(); err != nil || len(m.X509Svids) != n {
		t.Fatalf("the first message has %d SVIDs, %v, want %d", len(m.GetX509Svids()), err, n)
	}
	return st
}

func is(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

var uid1 = []*types.Selector{{Type: "unix", Value: "uid:1"}}

func TestByPID(t *testing.T) {
	h := open(t)
	st, err := h.SubscribeToX509SVIDs(asking(t), &pb.SubscribeToX509SVIDsRequest{Pid: 7})
	check(t, err)
	m, err := st.Recv()
	if err != nil || len(m.X509Svids) != 1 {
		t.Fatal(m, err)
	}
	svid := m.X509Svids[0]
	leaf, err := x509.ParseCertificate(svid.X509Svid.CertChain[0])
	check(t, err)
	if _, err := x509.ParsePKCS8PrivateKey(svid.X509SvidKey); err != nil || svid.X509Svid.Id.Path != "/a" || svid.X509Svid.ExpiresAt != leaf.NotAfter.Unix() {
		t.Errorf("got %v, %v", svid.X509Svid, err)
	}
	if r, err := h.tokens(t, &pb.FetchJWTSVIDsRequest{Pid: 7}); err != nil || len(r.Svids) != 1 || r.Svids[0].Id.Path != "/a" || r.Svids[0].ExpiresAt <= r.Svids[0].IssuedAt {
		t.Errorf("got %v, %v", r, err)
	}
	for _, d := range h.workloads.Recorded() {
		if d.Via != "spiffe://example.org/proxy" {
			t.Errorf("written down: %+v", d)
		}
	}
	h.workloads.Manager.Entries(true, nil, nil, 2)
	if m, err = st.Recv(); err != nil || len(m.X509Svids) != 0 {
		t.Errorf("without identities: %v, %v", m, err)
	}
	h.subscribe(t, 0)
	_, err = h.tokens(t, &pb.FetchJWTSVIDsRequest{Pid: 7})
	is(t, "without identities", err, codes.PermissionDenied)
	h.gone.Store(true)
	_, err = h.tokens(t, &pb.FetchJWTSVIDsRequest{Pid: 7})
	is(t, "a process that is gone", err, codes.NotFound)
}

func TestBySelectors(t *testing.T) {
	h := open(t)
	_, err := h.tokens(t, &pb.FetchJWTSVIDsRequest{Selectors: uid1})
	is(t, "selectors where the server wants evidence", err, codes.PermissionDenied)
	h.evidence.Store(false)
	if r, err := h.tokens(t, &pb.FetchJWTSVIDsRequest{Selectors: uid1}); err != nil || len(r.Svids) != 1 || r.Svids[0].Id.Path != "/a" {
		t.Errorf("got %v, %v", r, err)
	}
	for what, req := range map[string]*pb.FetchJWTSVIDsRequest{
		"neither": {}, "both": {Pid: 7, Selectors: uid1}, "a negative number": {Pid: -1},
		"no type": {Selectors: []*types.Selector{{Value: "uid:1"}}}, "nothing": {Selectors: []*types.Selector{nil}},
		"a type with a colon": {Selectors: []*types.Selector{{Type: "unix:uid", Value: "1"}}},
	} {
		_, err := h.tokens(t, req)
		is(t, what, err, codes.InvalidArgument)
	}
	_, err = h.FetchJWTSVIDs(asking(t), &pb.FetchJWTSVIDsRequest{Pid: 7})
	is(t, "without audience", err, codes.InvalidArgument)
}

// Who is no delegate gets nothing; who is none any more gets no further message.
func TestDelegate(t *testing.T) {
	h := open(t)
	st := h.subscribe(t, 1)
	bundles, err := h.SubscribeToX509Bundles(asking(t), &pb.SubscribeToX509BundlesRequest{})
	check(t, err)
	if m, err := bundles.Recv(); err != nil || len(m.CaCertificates["spiffe://example.org"]) == 0 {
		t.Errorf("bundles: %v, %v", m, err)
	}
	keys, err := h.SubscribeToJWTBundles(asking(t), &pb.SubscribeToJWTBundlesRequest{})
	check(t, err)
	if m, err := keys.Recv(); err != nil || len(m.Bundles["spiffe://example.org"]) == 0 {
		t.Errorf("JWT bundles: %v, %v", m, err)
	}
	h.callers.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("other", 1, "uid:1")}, nil, 2)
	h.workloads.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1"), deliverytest.Entry("b", 1, "uid:1")}, nil, 2)
	before := len(h.workloads.Recorded())
	_, err = st.Recv()
	is(t, "a delegate no more, at the next message", err, codes.PermissionDenied)
	h.workloads.Bundle(t, 2)
	h.callers.Bundle(t, 2)
	if _, err = bundles.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles for a delegate no more: %v", err)
	}
	_, err = h.tokens(t, &pb.FetchJWTSVIDsRequest{Pid: 7})
	is(t, "a delegate no more", err, codes.PermissionDenied)
	h.callers.Manager.Entries(true, nil, nil, 3)
	_, err = h.tokens(t, &pb.FetchJWTSVIDsRequest{Pid: 7})
	is(t, "without any identity", err, codes.PermissionDenied)
	if n := len(h.workloads.Recorded()); n != before {
		t.Errorf("%d deliveries more", n-before)
	}
}

// Either's end ends the stream.
func TestEnds(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(h *house)
		want codes.Code
	}{
		"the delegate has another program": {func(h *house) {
			h.callers.Workload.Becomes(errors.New("executed"))
			close(h.callers.Workload.Change)
		}, codes.PermissionDenied},
		"the workload has another program": {func(h *house) {
			h.workloads.Workload.Becomes(errors.New("executed"))
			close(h.workloads.Workload.Change)
		}, codes.PermissionDenied},
		"the delegate has exited": {func(h *house) { close(h.callers.Workload.Exit) }, codes.PermissionDenied},
		"the workload has exited": {func(h *house) { close(h.workloads.Workload.Exit) }, codes.PermissionDenied},
	} {
		h := open(t)
		st := h.subscribe(t, 1)
		c.end(h)
		_, err := st.Recv()
		is(t, what, err, c.want)
	}
}

func TestPairChanges(t *testing.T) {
	a, b := deliverytest.New(t).Workload, deliverytest.New(t).Workload
	ctx, cancel := context.WithCancel(t.Context())
	p := onBehalf(ctx, a, b)
	first := p.Changed()
	if p.Changed() != first {
		t.Error("a second channel while nothing has changed")
	}
	close(b.Change)
	<-first
	b.Change = make(chan struct{})
	next := p.Changed()
	select {
	case <-next:
		t.Error("the same change twice")
	case <-time.After(10 * time.Millisecond):
	}
	cancel()
	<-next
	<-p.Done()
	if got := fmt.Sprint(p.Selectors()); got != fmt.Sprint(b.Selectors()) {
		t.Error(got)
	}
}
