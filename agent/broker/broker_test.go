// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	pb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// authority signs SVIDs of a trust domain.
type authority struct {
	td   spiffeid.TrustDomain
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, td string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	a := &authority{td: spiffeid.RequireTrustDomainFromString(td), key: key}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: td}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{{Scheme: "spiffe", Host: td}}, SubjectKeyId: []byte(td)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	check(t, err)
	a.cert, err = x509.ParseCertificate(der)
	check(t, err)
	return a
}

// svid signs one that lasts d.
func (a *authority) svid(t *testing.T, path string, d time.Duration) *x509svid.SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	id := spiffeid.RequireFromPath(a.td, path)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(d),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id.URL()}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func (a *authority) bundle(t *testing.T) *trust.Bundle {
	b := spiffebundle.New(a.td)
	b.AddX509Authority(a.cert)
	return deliverytest.BundleOf(t, b)
}

// revoke returns a list with the SVID.
func (a *authority) revoke(t *testing.T, s *x509svid.SVID) *trust.Revoked {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: s.Certificates[0].SerialNumber, RevocationTime: time.Now()}}}, a.cert, a.key)
	check(t, err)
	r, err := trust.ReadRevoked([][]byte{der})
	check(t, err)
	return r
}

// house is a served Broker API.
type house struct {
	*deliverytest.Fixture
	ours    *authority
	address string

	mu      sync.Mutex
	bundles map[spiffeid.TrustDomain]*trust.Bundle
	process error // of attesting
}

func (h *house) trusts(b *trust.Bundle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bundles[b.TrustDomain()] = b
}

func (h *house) attests(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.process = err
}

func open(t *testing.T, brokers map[spiffeid.ID]Rights) *house {
	t.Helper()
	h := &house{Fixture: deliverytest.New(t), ours: newAuthority(t, "example.org"), bundles: map[spiffeid.TrustDomain]*trust.Bundle{}}
	h.trusts(h.ours.bundle(t))
	h.Bundle(t, 1)
	h.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, 1)
	node := h.ours.svid(t, "/node", time.Hour)
	g := New(Config{Desk: h.Desk, Identity: node, Brokers: brokers, Logger: slog.New(slog.NewTextHandler(h, nil)),
		Bundle: func(td spiffeid.TrustDomain) *trust.Bundle {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.bundles[td]
		},
		Process: func(context.Context, int) (delivery.Workload, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.Workload, h.process
		}}).GRPC()
	h.address = filepath.Join(t.TempDir(), "b.sock")
	l, err := net.Listen("unix", h.address)
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		check(t, <-served)
	})
	return h
}

func (h *house) dial(t *testing.T, svid *x509svid.SVID) pb.APIClient {
	t.Helper()
	creds := credentials.NewTLS(tlsconfig.MTLSClientConfig(svid, h.ours.bundle(t).X509Bundle(), tlsconfig.AuthorizeAny()))
	conn, err := grpc.NewClient("unix:"+h.address, grpc.WithTransportCredentials(creds), grpc.WithAuthority("localhost"))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return pb.NewAPIClient(conn)
}

func asking(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
}

func pid(t *testing.T) *pb.WorkloadReference {
	a, err := anypb.New(&pb.WorkloadPIDReference{Pid: 7})
	check(t, err)
	return &pb.WorkloadReference{Reference: a}
}

func token(t *testing.T, c pb.APIClient) error {
	_, err := c.FetchJWTSVID(asking(t), &pb.FetchJWTSVIDRequest{Reference: pid(t), Audience: []string{"db"}})
	return err
}

func subscribe(t *testing.T, c pb.APIClient) grpc.ServerStreamingClient[pb.SubscribeToX509SVIDResponse] {
	t.Helper()
	st, err := c.SubscribeToX509SVID(asking(t), &pb.SubscribeToX509SVIDRequest{Reference: pid(t)})
	check(t, err)
	if m, err := st.Recv(); err != nil || len(m.Svids) != 1 {
		t.Fatalf("the first message has %d SVIDs, %v", len(m.GetSvids()), err)
	}
	return st
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is wants a code, and the standard's reason unless that is "".
func is(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	said := slices.ContainsFunc(st.Details(), func(d any) bool {
		info, ok := d.(*errdetails.ErrorInfo)
		return ok && info.Domain == "spiffe.io" && info.Reason == reason
	})
	if st.Code() != code || said != (reason != "") {
		t.Errorf("%s: %v %v, want %v %s", what, err, st.Details(), code, reason)
	}
}

func TestWhoMayAsk(t *testing.T) {
	partner, unknown := newAuthority(t, "partner.example"), newAuthority(t, "unknown.example")
	all := Rights{References: References}
	h := open(t, map[spiffeid.ID]Rights{
		spiffeid.RequireFromString("spiffe://example.org/proxy"):     all,
		spiffeid.RequireFromString("spiffe://example.org/powerless"): {},
		spiffeid.RequireFromString("spiffe://partner.example/proxy"): all,
		spiffeid.RequireFromString("spiffe://unknown.example/proxy"): all,
	})
	h.trusts(partner.bundle(t))
	proxy := h.ours.svid(t, "/proxy", time.Hour)
	impostor := newAuthority(t, "example.org")
	for what, c := range map[string]struct {
		svid *x509svid.SVID
		want codes.Code
	}{
		"a broker":                           {proxy, codes.OK},
		"one of a federated trust domain":    {partner.svid(t, "/proxy", time.Hour), codes.OK},
		"another one of it":                  {partner.svid(t, "/other", time.Hour), codes.PermissionDenied},
		"one of a trust domain without path": {h.ours.svid(t, "/proxy/below", time.Hour), codes.PermissionDenied},
		"one without types of references":    {h.ours.svid(t, "/powerless", time.Hour), codes.PermissionDenied},
		"one of an unknown trust domain":     {unknown.svid(t, "/proxy", time.Hour), codes.Unavailable},
		"one by another's authority":         {impostor.svid(t, "/proxy", time.Hour), codes.Unavailable},
		"one that has expired":               {h.ours.svid(t, "/proxy", -time.Second), codes.Unavailable},
	} {
		if err := token(t, h.dial(t, c.svid)); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if got := h.Recorded(); len(got) != 2 || (got[0].Via != "spiffe://example.org/proxy" && got[0].Via != "spiffe://partner.example/proxy") {
		t.Errorf("written down: %+v", got)
	}
	h.trusts(h.ours.bundle(t).WithRevoked(h.ours.revoke(t, proxy)))
	is(t, "one that is revoked", token(t, h.dial(t, proxy)), codes.Unauthenticated, "")
}

// A stream ends with the broker's right to it, before the next message.
func TestTheBrokerEnds(t *testing.T) {
	h := open(t, map[spiffeid.ID]Rights{spiffeid.RequireFromString("spiffe://example.org/proxy"): {References: References}})
	proxy := h.ours.svid(t, "/proxy", time.Hour)
	for what, end := range map[string]func(){
		"revoked":                 func() { h.trusts(h.ours.bundle(t).WithRevoked(h.ours.revoke(t, proxy))) },
		"by an authority no more": func() { h.trusts(newAuthority(t, "example.org").bundle(t)) },
	} {
		h.trusts(h.ours.bundle(t))
		st := subscribe(t, h.dial(t, proxy))
		before := len(h.Recorded())
		end()
		h.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1"), deliverytest.Entry(fmt.Sprint("b", before), 1, "uid:1")}, nil, int64(before)+2)
		_, err := st.Recv()
		is(t, what, err, codes.Unauthenticated, "")
		if n := len(h.Recorded()); n != before {
			t.Errorf("%s: %d deliveries more", what, n-before)
		}
		h.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, int64(before)+3)
	}
}

func TestTheWorkloadEnds(t *testing.T) {
	h := open(t, map[spiffeid.ID]Rights{spiffeid.RequireFromString("spiffe://example.org/proxy"): {References: References}})
	c := h.dial(t, h.ours.svid(t, "/proxy", time.Hour))
	h.attests(fmt.Errorf("process 7: %w", process.ErrGone))
	is(t, "no such process", token(t, c), codes.NotFound, notFound)
	h.attests(errors.New("no sensor"))
	is(t, "a process that can not be looked at", token(t, c), codes.Unavailable, "")
	h.attests(nil)

	st := subscribe(t, c)
	h.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("b", 1, "uid:2")}, nil, 2)
	_, err := st.Recv()
	is(t, "a workload that lost its identity", err, codes.PermissionDenied, notEntitled)
	h.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, 3)

	st = subscribe(t, c)
	h.Workload.Becomes(process.ErrReplaced)
	close(h.Workload.Change)
	_, err = st.Recv()
	is(t, "another program", err, codes.NotFound, notFound)
	is(t, "another program, asked again", token(t, c), codes.NotFound, notFound)
}

func FuzzReference(f *testing.F) {
	f.Add("type.googleapis.com/spiffe.broker.WorkloadPIDReference", []byte{8, 7})
	f.Add("/spiffe.broker.WorkloadPIDReference", []byte{8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add("spiffe.broker.KubernetesObjectReference", []byte{})
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		c := &client{rights: Rights{References: References}}
		pid, err := c.read(&pb.WorkloadReference{Reference: &anypb.Any{TypeUrl: name, Value: value}})
		if err == nil && pid <= 0 || err != nil && status.Code(err) != codes.InvalidArgument {
			t.Errorf("process %d, %v", pid, err)
		}
	})
}

func TestOverTCP(t *testing.T) {
	c := &client{rights: Rights{References: References}, tcp: true}
	_, err := c.read(pid(t))
	is(t, "over TCP", err, codes.PermissionDenied, "")
	c.rights.OverTCP = true
	if n, err := c.read(pid(t)); n != 7 || err != nil {
		t.Errorf("allowed over TCP: %d, %v", n, err)
	}
}
