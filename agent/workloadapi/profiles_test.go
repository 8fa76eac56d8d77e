// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// ready serves one entry.
func ready(t *testing.T) *fixture {
	f := serve(t)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 0, "uid:1")}, nil, 1)
	return f
}

func is(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// unsupported is the error of a server that signs none.
type unsupported struct{}

func (unsupported) Error() string     { return "not here" }
func (unsupported) Unsupported() bool { return true }

func TestFetchJWTSVID(t *testing.T) {
	f := ready(t)
	fetch := func(audience []string, id string) (*pb.JWTSVIDResponse, error) {
		return f.FetchJWTSVID(call(t), &pb.JWTSVIDRequest{Audience: audience, SpiffeId: id})
	}
	got, err := fetch([]string{"db", "", "cache"}, "")
	if err != nil || len(got.Svids) != 1 || got.Svids[0].SpiffeId != "spiffe://example.org/a" {
		t.Fatal(got, err)
	}
	if again, err := fetch([]string{"db", "cache"}, "spiffe://example.org/a"); err != nil || again.Svids[0].Svid != got.Svids[0].Svid {
		t.Errorf("asked again: %v, %v", again, err)
	}
	for what, c := range map[string]struct {
		audience []string
		id       string
		want     codes.Code
	}{
		"A-10: without an audience":        {nil, "", codes.InvalidArgument},
		"A-10: with empty audiences":       {[]string{"", ""}, "", codes.InvalidArgument},
		"a long audience":                  {[]string{strings.Repeat("x", 8<<10+1)}, "", codes.InvalidArgument},
		"many audiences":                   {slices.Repeat([]string{"x"}, 200), "", codes.InvalidArgument},
		"not a SPIFFE ID":                  {[]string{"db"}, "http://example.org/a", codes.InvalidArgument},
		"A-19: an identity of another one": {[]string{"db"}, "spiffe://example.org/b", codes.PermissionDenied},
	} {
		_, err := fetch(c.audience, c.id)
		is(t, what, err, c.want)
	}
	if n := len(f.Recorded()); n != 2 || f.Recorded()[0].Kind != "jwt" || fmt.Sprint(f.Recorded()[0].Audience) != "[db cache]" || f.Recorded()[0].Serial != f.Recorded()[1].Serial || len(f.Recorded()[0].Serial) != 64 {
		t.Errorf("recorded %+v", f.Recorded())
	}

	f.Signer.Fails(errors.New("connection refused"))
	_, err = fetch([]string{"new"}, "")
	is(t, "the server is away", err, codes.Unavailable)
	f.Signer.Fails(deliverytest.Refusal{})
	_, err = fetch([]string{"new"}, "")
	is(t, "the server says no", err, codes.PermissionDenied)
	f.Signer.Fails(unsupported{})
	_, err = fetch([]string{"new"}, "")
	is(t, "the server signs none", err, codes.Unimplemented)
	f.Signer.Fails(nil)
	f.Workload.Becomes(errors.New("it executed another program"))
	_, err = fetch([]string{"db", "cache"}, "")
	is(t, "a caller that changed gets no token, not even one that is there", err, codes.PermissionDenied)
	f.Deny(errors.New("two processes hold the connection"))
	_, err = fetch([]string{"db"}, "")
	is(t, "not attested", err, codes.PermissionDenied)
}

func TestValidateJWTSVID(t *testing.T) {
	f := ready(t)
	got, err := f.FetchJWTSVID(call(t), &pb.JWTSVIDRequest{Audience: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	validate := func(audience, token string) (*pb.ValidateJWTSVIDResponse, error) {
		return f.ValidateJWTSVID(call(t), &pb.ValidateJWTSVIDRequest{Audience: audience, Svid: token})
	}
	v, err := validate("db", got.Svids[0].Svid)
	if err != nil || v.SpiffeId != "spiffe://example.org/a" {
		t.Fatal(v, err)
	}
	if claims := v.Claims.AsMap(); claims["private"] != true || fmt.Sprint(claims["aud"]) != "[db]" {
		t.Errorf("A-23: claims %v", claims)
	}
	for what, c := range map[string][2]string{"A-10: no audience": {"", got.Svids[0].Svid}, "A-10: no token": {"db", ""}, "J-9: another audience": {"x", got.Svids[0].Svid}, "no token": {"db", "x.y.z"}} {
		_, err := validate(c[0], c[1])
		is(t, what, err, codes.InvalidArgument)
	}
	far := spiffeid.RequireTrustDomainFromString("far.test")
	claims := map[string]any{"sub": far.IDString() + "/w", "aud": "db", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "allowed": 1, "other": 2}
	foreign, err := deliverytest.SignJWT(f.Signer.Key, "far", "JWT", claims)
	if err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(far)
	if err := b.AddJWTAuthority("far", f.Signer.Key.Public()); err != nil {
		t.Fatal(err)
	}
	f.Manager.Trust(trust.Change{Foreign: []*trust.Bundle{deliverytest.BundleOf(t, b)}})
	_, err = validate("db", foreign)
	is(t, "of a trust domain that no entry of the caller federates with", err, codes.InvalidArgument)
	e := deliverytest.Entry("a", 1, "uid:1")
	e.FederatesWith = []string{"far.test"}
	f.Manager.Entries(false, []*selectors.Entry{e}, nil, 2)
	if v, err = validate("db", foreign); err != nil || fmt.Sprint(slices.Sorted(maps.Keys(v.Claims.AsMap()))) != "[allowed aud exp sub]" {
		t.Errorf("A-23: %v, %v", v, err)
	}
	f.Manager.Entries(true, nil, nil, 3)
	_, err = validate("db", foreign)
	is(t, "A-15: without an identity", err, codes.PermissionDenied)
}

// first opens a stream and returns it with its first message.
func first[M any](t *testing.T, open func(context.Context) (grpc.ServerStreamingClient[M], error)) (grpc.ServerStreamingClient[M], *M) {
	t.Helper()
	st, err := open(call(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return st, m
}

// All three kinds of bundles: ours and those that the entries federate with, then every change; a stream ends
// with the caller's identity or trust.
func TestBundleStreams(t *testing.T) {
	f := ready(t)
	x, xm := first(t, func(ctx context.Context) (grpc.ServerStreamingClient[pb.X509BundlesResponse], error) {
		return f.FetchX509Bundles(ctx, &pb.X509BundlesRequest{})
	})
	j, jm := first(t, func(ctx context.Context) (grpc.ServerStreamingClient[pb.JWTBundlesResponse], error) {
		return f.FetchJWTBundles(ctx, &pb.JWTBundlesRequest{})
	})
	w, wm := first(t, func(ctx context.Context) (grpc.ServerStreamingClient[pb.WITBundlesResponse], error) {
		return f.FetchWITBundles(ctx, &pb.WITBundlesRequest{})
	})
	own := "spiffe://example.org"
	if len(xm.Bundles) != 1 || len(jm.Bundles) != 1 || len(wm.Bundles) != 1 || len(xm.Bundles[own]) == 0 || !strings.Contains(wm.Bundles[own], `"kid":"wit"`) {
		t.Errorf("got %v, %v, %v", xm, jm, wm)
	}
	if b, err := jwtbundle.Parse(deliverytest.TD, jm.Bundles[own]); err != nil || !b.HasJWTAuthority("jwt") || b.HasJWTAuthority("wit") {
		t.Errorf("A-20, A-21: %s, %v", jm.Bundles[own], err)
	}
	e := deliverytest.Entry("a", 1, "uid:1")
	e.FederatesWith = []string{"far.test"}
	f.Manager.Entries(false, []*selectors.Entry{e}, nil, 2)
	settled := f.Manager.Trust(trust.Change{Foreign: []*trust.Bundle{deliverytest.BundleOf(t, spiffebundle.New(spiffeid.RequireTrustDomainFromString("far.test")))}})
	for what, next := range map[string]func() (int, error){
		"X.509": func() (int, error) { m, err := x.Recv(); return len(m.GetBundles()), err },
		"JWT":   func() (int, error) { m, err := j.Recv(); return len(m.GetBundles()), err },
		"WIT":   func() (int, error) { m, err := w.Recv(); return len(m.GetBundles()), err },
	} {
		if n, err := next(); n != 2 || err != nil {
			t.Errorf("%s: %d bundles, %v", what, n, err)
		}
	}
	select {
	case <-settled:
	case <-time.After(20 * time.Second):
		t.Error("the streams have the bundles, and the manager does not know")
	}
	f.Workload.Becomes(errors.New("it executed another program"))
	close(f.Workload.Change)
	for what, end := range map[string]func() error{
		"X.509": func() error { _, err := x.Recv(); return err }, "JWT": func() error { _, err := j.Recv(); return err }, "WIT": func() error { _, err := w.Recv(); return err },
	} {
		is(t, what+" after the caller changed", end(), codes.PermissionDenied)
	}
}

func TestFetchWITSVID(t *testing.T) {
	f := ready(t)
	st, m := first(t, func(ctx context.Context) (grpc.ServerStreamingClient[pb.WITSVIDResponse], error) {
		return f.FetchWITSVID(ctx, &pb.WITSVIDRequest{})
	})
	var key jose.JSONWebKey
	svid, err := witsvid.ParseInsecure(m.Svids[0].WitSvid)
	if err == nil {
		err = key.UnmarshalJSON([]byte(m.Svids[0].WitSvidKey))
	}
	if err != nil {
		t.Fatal(err)
	}
	if private, ok := key.Key.(*ecdsa.PrivateKey); !ok || !private.PublicKey.Equal(svid.PublicKey) {
		t.Errorf("A-25: the key is %T, and not that of cnf", key.Key)
	}
	f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1")}, nil, 2)
	if next, err := st.Recv(); err != nil || next.Svids[0].WitSvid == m.Svids[0].WitSvid {
		t.Errorf("a new revision: %v, %v", next, err)
	}
	f.Manager.Entries(false, nil, []string{"a"}, 3)
	_, err = st.Recv()
	is(t, "A-15: the entry is gone", err, codes.PermissionDenied)
	if len(f.Recorded()) != 2 || f.Recorded()[1].Kind != "wit" {
		t.Errorf("recorded %+v", f.Recorded())
	}

	st, err = f.FetchWITSVID(call(t), &pb.WITSVIDRequest{SpiffeId: "x"})
	if err == nil {
		_, err = st.Recv()
	}
	is(t, "not a SPIFFE ID", err, codes.InvalidArgument)
}

// where the trust domain has no WIT authorities, no WIT call works, and clients know not to try again.
func TestWithoutWIT(t *testing.T) {
	f := ready(t)
	f.Manager.Trust(trust.Change{Own: deliverytest.BundleOf(t, spiffebundle.New(deliverytest.TD))})
	svid, err := f.FetchWITSVID(call(t), &pb.WITSVIDRequest{})
	if err == nil {
		_, err = svid.Recv()
	}
	is(t, "FetchWITSVID", err, codes.Unimplemented)
	bundles, err := f.FetchWITBundles(call(t), &pb.WITBundlesRequest{})
	if err == nil {
		_, err = bundles.Recv()
	}
	is(t, "FetchWITBundles", err, codes.Unimplemented)
}

// The X.509 message has the bundles that the caller's entries federate with, and each hint once.
func TestFederatedBundlesAndHints(t *testing.T) {
	f := ready(t)
	older, newer := deliverytest.Entry("z", 0, "uid:1"), deliverytest.Entry("b", 0, "uid:1")
	older.Hint, newer.Hint, older.CreatedAt, newer.CreatedAt = "x", "x", time.Unix(1, 0), time.Unix(2, 0)
	newer.FederatesWith = []string{"far.test", "unknown.test"}
	f.Manager.Entries(false, []*selectors.Entry{older, newer}, nil, 2)
	f.Manager.Trust(trust.Change{Foreign: []*trust.Bundle{deliverytest.BundleOf(t, spiffebundle.New(spiffeid.RequireTrustDomainFromString("far.test"))), deliverytest.BundleOf(t, spiffebundle.New(spiffeid.RequireTrustDomainFromString("other.test")))}})
	m := receive(t, f.fetch(t))
	var hints []string
	for _, s := range m.Svids {
		hints = append(hints, s.SpiffeId+"="+s.Hint)
	}
	if fmt.Sprint(hints) != "[spiffe://example.org/a= spiffe://example.org/b= spiffe://example.org/z=x]" {
		t.Errorf("A-14, A-27: %v", hints)
	}
	if _, ok := m.FederatedBundles["spiffe://far.test"]; !ok || len(m.FederatedBundles) != 1 {
		t.Errorf("federated bundles: %v", m.FederatedBundles)
	}
}

func TestHealth(t *testing.T) {
	f := serve(t)
	c := grpc_health_v1.NewHealthClient(f.conn)
	st, err := c.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "SpiffeWorkloadAPI"})
	if err != nil {
		t.Fatal(err)
	}
	status := func() grpc_health_v1.HealthCheckResponse_ServingStatus {
		t.Helper()
		m, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m.Status
	}
	if s := status(); s != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("before there are entries: %s", s)
	}
	f.Bundle(t, 1)
	f.Manager.Entries(true, nil, nil, 1)
	if s := status(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("after: %s", s)
	}
	if r, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", r, err)
	}
	st, err = c.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if s := status(); s != grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Errorf("an unknown service: %s", s)
	}
}
