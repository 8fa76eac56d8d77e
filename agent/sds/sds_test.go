// SPDX-License-Identifier: Apache-2.0

package sds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// fixture is a served SDS; its client holds messages against Envoy's own rules for them.
type fixture struct {
	secret.SecretDiscoveryServiceClient
	*deliverytest.Fixture
}

func serve(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{Fixture: deliverytest.New(t)}
	g := grpc.NewServer()
	New(Config{Desk: f.Desk, Logger: slog.New(slog.NewTextHandler(f.Fixture, nil))}).Register(g)
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
	f.SecretDiscoveryServiceClient = secret.NewSecretDiscoveryServiceClient(conn)
	f.Bundle(t, 1)
	f.Manager.Entries(true, []*selectors.Entry{deliverytest.Entry("a", 1, "uid:1"), deliverytest.Entry("b", 1, "gid:1"), deliverytest.Entry("other", 1, "uid:2")}, nil, 1)
	return f
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// opened are the secrets of a response by name, each validated by Envoy's rules.
func opened(t *testing.T, list []*anypb.Any) map[string]*tlsv3.Secret {
	t.Helper()
	out := map[string]*tlsv3.Secret{}
	for _, a := range list {
		s := &tlsv3.Secret{}
		if err := errors.Join(a.UnmarshalTo(s), s.ValidateAll()); err != nil {
			t.Fatal(err)
		}
		if out[s.Name] != nil {
			t.Errorf("%s is there twice", s.Name)
		}
		out[s.Name] = s
	}
	return out
}

func names[V any](m map[string]V) string {
	var out []string
	for n := range m {
		out = append(out, n)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// leaf checks that certificate and key belong together.
func leaf(t *testing.T, s *tlsv3.Secret) *x509.Certificate {
	t.Helper()
	c := s.GetTlsCertificate()
	pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// validator returns the trust domains of the SPIFFE certificate validator.
func validator(t *testing.T, s *tlsv3.Secret) (out []string) {
	t.Helper()
	v := &tlsv3.SPIFFECertValidatorConfig{}
	if err := s.GetValidationContext().GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(v); err != nil {
		t.Fatal(err)
	}
	for _, d := range v.TrustDomains {
		if block, _ := pem.Decode(d.TrustBundle.GetInlineBytes()); block == nil {
			t.Errorf("the bundle of %s is no PEM", d.Name)
		}
		out = append(out, d.Name)
	}
	return out
}

func (f *fixture) fetched(t *testing.T, node *core.Node, names ...string) map[string]*tlsv3.Secret {
	t.Helper()
	resp, err := f.FetchSecrets(limited(t), &discovery.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names, Node: node})
	if err != nil {
		t.Fatal(err)
	}
	return opened(t, resp.Resources)
}

func TestFetchSecrets(t *testing.T) {
	f := serve(t)
	all := f.fetched(t, nil)
	if got := names(all); got != "spiffe://example.org spiffe://example.org/a spiffe://example.org/b" {
		t.Errorf("a request that names nothing gets %s", got)
	}
	some := f.fetched(t, nil, "default", "ROOTCA", "ALL", "spiffe://example.org/b")
	if got := names(some); got != "ALL ROOTCA default spiffe://example.org/b" {
		t.Errorf("got %s", got)
	}
	if id := leaf(t, some["default"]).URIs[0].String(); id != "spiffe://example.org/a" {
		t.Errorf("the default is %s", id)
	}
	if got := validator(t, some["ROOTCA"]); len(got) != 1 || got[0] != "example.org" {
		t.Errorf("ROOTCA has %v", got)
	}
	recorded := f.Recorded()
	if len(recorded) != 4 || recorded[0].Serial != leaf(t, all["spiffe://example.org/a"]).SerialNumber.String() {
		t.Errorf("recorded %+v", recorded)
	}
	for what, req := range map[string]*discovery.DiscoveryRequest{
		"another's identity": {ResourceNames: []string{"spiffe://example.org/other"}},
		"another type":       {TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"},
	} {
		if _, err := f.FetchSecrets(limited(t), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.Manager.Entries(true, nil, nil, 2)
	if _, err := f.FetchSecrets(limited(t), &discovery.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without any identity: %v", err)
	}
}

func TestFederation(t *testing.T) {
	f := serve(t)
	far := spiffebundle.New(spiffeid.RequireTrustDomainFromString("far.example"))
	for _, c := range ownAuthorities(t, f) {
		far.AddX509Authority(c)
	}
	e := deliverytest.Entry("a", 2, "uid:1")
	e.FederatesWith = []string{"far.example"}
	f.Manager.Entries(false, []*selectors.Entry{e}, nil, 2)
	f.Manager.Trust(trust.Change{Foreign: []*trust.Bundle{deliverytest.BundleOf(t, far)}})
	got := f.fetched(t, nil, "ALL", "spiffe://far.example")
	if all := validator(t, got["ALL"]); strings.Join(all, " ") != "example.org far.example" {
		t.Errorf("ALL has %v", all)
	}
	if one := validator(t, got["spiffe://far.example"]); len(one) != 1 || one[0] != "far.example" {
		t.Errorf("the foreign bundle has %v", one)
	}
}

func ownAuthorities(t *testing.T, f *fixture) []*x509.Certificate {
	t.Helper()
	list, err := x509.ParseCertificates(f.Manager.Bundles(nil)[0].X509())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// An Envoy that can not use the SPIFFE validator, or is told not to, gets plain authorities.
func TestPlainAuthorities(t *testing.T) {
	f := serve(t)
	old := &core.Node{UserAgentVersionType: &core.Node_UserAgentBuildVersion{UserAgentBuildVersion: &core.BuildVersion{Version: &envoy.SemanticVersion{MajorNumber: 1, MinorNumber: 17}}}}
	metadata := func(v any) *core.Node {
		m, err := structpb.NewStruct(map[string]any{validatorSwitch: v})
		if err != nil {
			t.Fatal(err)
		}
		return &core.Node{Metadata: m}
	}
	for what, c := range map[string]struct {
		node  *core.Node
		plain bool
	}{"Envoy 1.17": {old, true}, "true": {metadata(true), true}, "text": {metadata("true"), true}, "false": {metadata(false), false}, "nonsense": {metadata("maybe"), false}, "no node": {nil, false}} {
		got := f.fetched(t, c.node, "ROOTCA")["ROOTCA"].GetValidationContext()
		if plain := len(got.GetTrustedCa().GetInlineBytes()) > 0; plain != c.plain || plain == (got.CustomValidatorConfig != nil) {
			t.Errorf("%s: plain is %v", what, plain)
		}
	}
	if _, err := f.FetchSecrets(limited(t), &discovery.DiscoveryRequest{Node: old, ResourceNames: []string{"ALL"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ALL without the validator: %v", err)
	}
}

func TestStreamSecrets(t *testing.T) {
	f := serve(t)
	st, err := f.SecretDiscoveryServiceClient.StreamSecrets(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *discovery.DiscoveryRequest) {
		t.Helper()
		req.TypeUrl = secretType
		if err := st.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	next := func() (*discovery.DiscoveryResponse, map[string]*tlsv3.Secret) {
		t.Helper()
		resp, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.TypeUrl != secretType || resp.Nonce == "" || resp.VersionInfo == "" {
			t.Errorf("the response is %v", resp)
		}
		return resp, opened(t, resp.Resources)
	}
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"default"}})
	first, got := next()
	if names(got) != "default" {
		t.Fatalf("got %s", names(got))
	}
	// ACK, then others are asked for: only that is answered.
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"default"}, VersionInfo: first.VersionInfo, ResponseNonce: first.Nonce})
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"default", "ROOTCA", "spiffe://example.org/other"}, VersionInfo: first.VersionInfo, ResponseNonce: first.Nonce})
	second, got := next()
	if names(got) != "ROOTCA default" || second.VersionInfo == first.VersionInfo {
		t.Fatalf("got %s in version %s", names(got), second.VersionInfo)
	}
	// A NACK is logged, and the same is not sent again; an answer to an older response does not count.
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"default", "ROOTCA"}, VersionInfo: first.VersionInfo, ResponseNonce: second.Nonce, ErrorDetail: &rpcstatus.Status{Message: "no such key type"}})
	third, got := next() // the list has changed
	if names(got) != "ROOTCA default" {
		t.Fatalf("got %s", names(got))
	}
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"ALL"}, VersionInfo: first.VersionInfo, ResponseNonce: first.Nonce})
	f.Bundle(t, 2)
	fourth, got := next()
	if names(got) != "ROOTCA default" || fourth.VersionInfo == third.VersionInfo {
		t.Fatalf("after another bundle: %s", names(got))
	}
	// Nothing is wanted any more; then again.
	ask(&discovery.DiscoveryRequest{VersionInfo: fourth.VersionInfo, ResponseNonce: fourth.Nonce})
	ask(&discovery.DiscoveryRequest{ResourceNames: []string{"spiffe://example.org"}, VersionInfo: fourth.VersionInfo, ResponseNonce: fourth.Nonce})
	if _, got = next(); names(got) != "spiffe://example.org" {
		t.Fatalf("got %s", names(got))
	}
	if logs := f.Logs(); !strings.Contains(logs, "no such key type") || !strings.Contains(logs, "spiffe://example.org/other") {
		t.Errorf("the log says %s", logs)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != io.EOF {
		t.Errorf("the stream ends with %v", err)
	}
}

// A stream is open as long as its caller is who he was.
func TestStreamEnds(t *testing.T) {
	f := serve(t)
	st, err := f.SecretDiscoveryServiceClient.StreamSecrets(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&discovery.DiscoveryRequest{ResourceNames: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	f.Workload.Becomes(errors.New("it executed another program"))
	close(f.Workload.Change)
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "executed another program") {
		t.Errorf("got %v", err)
	}
}

func TestDeltaSecrets(t *testing.T) {
	f := serve(t)
	st, err := f.SecretDiscoveryServiceClient.DeltaSecrets(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		if err := st.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	next := func() (map[string]string, []string) {
		t.Helper()
		resp, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		versions := map[string]string{}
		for _, r := range resp.Resources {
			opened(t, []*anypb.Any{r.Resource})
			versions[r.Name] = r.Version
		}
		return versions, resp.RemovedResources
	}
	ask(&discovery.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{"default", "ROOTCA", "spiffe://example.org/late"}})
	first, removed := next()
	if names(first) != "ROOTCA default" || len(removed) != 1 || removed[0] != "spiffe://example.org/late" {
		t.Fatalf("got %s, removed %v", names(first), removed)
	}
	// What changes is sent, and nothing else.
	f.Bundle(t, 2)
	second, removed := next()
	if names(second) != "ROOTCA" || second["ROOTCA"] == first["ROOTCA"] || len(removed) != 0 {
		t.Fatalf("after another bundle: %s, removed %v", names(second), removed)
	}
	f.Manager.Entries(false, []*selectors.Entry{deliverytest.Entry("late", 1, "uid:1")}, nil, 2)
	if third, removed := next(); names(third) != "spiffe://example.org/late" || len(removed) != 0 {
		t.Fatalf("after another entry: %s, removed %v", names(third), removed)
	}
	f.Manager.Entries(false, nil, []string{"late"}, 3)
	if got, removed := next(); len(got) != 0 || len(removed) != 1 || removed[0] != "spiffe://example.org/late" {
		t.Fatalf("after the entry has gone: %s, removed %v", names(got), removed)
	}
	ask(&discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"ROOTCA", "spiffe://example.org/late"}})
	ask(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"spiffe://example.org/b"}})
	if got, removed := next(); names(got) != "spiffe://example.org/b" || len(removed) != 0 {
		t.Fatalf("got %s, removed %v", names(got), removed)
	}
	if n := len(f.Recorded()); n != 3 { // default, late, b: the bundle is no delivery of the others
		t.Errorf("%d deliveries are recorded: %+v", n, f.Recorded())
	}

	// A client that comes back and has this version is not sent it again.
	st.CloseSend()
	again, err := f.SecretDiscoveryServiceClient.DeltaSecrets(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	st = again
	ask(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default", "ROOTCA"}, InitialResourceVersions: map[string]string{"default": first["default"], "ROOTCA": first["ROOTCA"]}})
	if got, _ := next(); names(got) != "ROOTCA" || got["ROOTCA"] != second["ROOTCA"] {
		t.Errorf("a client that comes back gets %s", names(got))
	}
}
