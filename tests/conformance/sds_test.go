// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// quiet is how long nothing may come where nothing is due.
const quiet = time.Second

// An envoy is a strict client of one SDS stream. Envoy sends no security header.
type envoy struct {
	p     *probe
	st    grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	node  *corev3.Node
	last  *discoveryv3.DiscoveryResponse
	comes chan *discoveryv3.DiscoveryResponse
	ended chan error
}

func newEnvoy(p *probe, metadata map[string]any) *envoy {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	p.Cleanup(cancel)
	st, err := secretv3.NewSecretDiscoveryServiceClient(at.conn).StreamSecrets(ctx)
	p.must("StreamSecrets", err)
	meta, err := structpb.NewStruct(metadata)
	p.must("metadata", err)
	e := &envoy{p: p, st: st, comes: make(chan *discoveryv3.DiscoveryResponse, 10), ended: make(chan error, 1),
		node: &corev3.Node{Id: "conformance", Cluster: "conformance", Metadata: meta}}
	go func() {
		for {
			r, err := st.Recv()
			if err != nil {
				e.ended <- err
				return
			}
			e.comes <- r
		}
	}()
	return e
}

// ask subscribes to names, which also acknowledges the last response.
func (e *envoy) ask(names ...string) {
	e.p.Helper()
	e.p.must("request", e.st.Send(&discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: secretType, ResourceNames: names, VersionInfo: e.last.GetVersionInfo(), ResponseNonce: e.last.GetNonce()}))
}

// next is the next response, its secrets by name.
func (e *envoy) next() map[string]*tlsv3.Secret {
	e.p.Helper()
	select {
	case r := <-e.comes:
		if r.TypeUrl != secretType || r.Nonce == "" || r.Nonce == e.last.GetNonce() || r.VersionInfo == "" {
			e.p.Errorf("type %q, version %q, nonce %q after %q", r.TypeUrl, r.VersionInfo, r.Nonce, e.last.GetNonce())
		}
		e.last = r
		return secrets(e.p, r.Resources)
	case err := <-e.ended:
		e.p.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		e.p.Fatalf("no response in %s", patience)
	}
	return nil
}

// silent wants nothing to come, and the stream to stay.
func (e *envoy) silent(after string) {
	e.p.Helper()
	select {
	case r := <-e.comes:
		e.p.Errorf("%s: a response of version %q came", after, r.VersionInfo)
	case err := <-e.ended:
		e.p.Fatalf("%s: the stream ended: %v", after, err)
	case <-time.After(quiet):
	}
}

// secrets reads resources as strictly as Envoy does.
func secrets(p *probe, resources []*anypb.Any) map[string]*tlsv3.Secret {
	p.Helper()
	out := map[string]*tlsv3.Secret{}
	for _, r := range resources {
		s := &tlsv3.Secret{}
		if r.TypeUrl != secretType {
			p.Fatalf("a resource of type %s", r.TypeUrl)
		}
		p.must("resource", r.UnmarshalTo(s))
		p.must("Envoy's rules for "+s.Name, s.ValidateAll())
		if out[s.Name] != nil {
			p.Errorf("%s is there twice", s.Name)
		}
		out[s.Name] = s
	}
	return out
}

// certificate wants a TlsCertificate whose key belongs to it, for an ID.
func certificate(p *probe, s *tlsv3.Secret, id string) {
	p.Helper()
	c := s.GetTlsCertificate()
	pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	p.must("the TlsCertificate of "+id, err)
	if got := pair.Leaf.URIs; len(got) != 1 || got[0].String() != id {
		p.Errorf("a certificate for %v, want %s", got, id)
	}
}

// trustDomains are those of a validation context with envoy's SPIFFE validator.
func trustDomains(p *probe, s *tlsv3.Secret) (names []string) {
	p.Helper()
	custom := s.GetValidationContext().GetCustomValidatorConfig()
	config := &tlsv3.SPIFFECertValidatorConfig{}
	if custom.GetName() != "envoy.tls.cert_validator.spiffe" {
		p.Fatalf("%s has the validator %q", s.GetName(), custom.GetName())
	}
	p.must("the validator", custom.TypedConfig.UnmarshalTo(config))
	p.must("Envoy's rules for the validator", config.ValidateAll())
	for _, td := range config.TrustDomains {
		if len(readPEM(p, td.TrustBundle.GetInlineBytes())) == 0 {
			p.Errorf("%s has no certificates", td.Name)
		}
		names = append(names, td.Name)
	}
	slices.Sort(names)
	return names
}

func readPEM(p *probe, text []byte) (list []*x509.Certificate) {
	p.Helper()
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return list
		}
		c, err := x509.ParseCertificate(block.Bytes)
		p.must("PEM", err)
		list, text = append(list, c), rest
	}
}

func fetchSecrets(p *probe, names ...string) (map[string]*tlsv3.Secret, error) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	r, err := secretv3.NewSecretDiscoveryServiceClient(at.conn).FetchSecrets(ctx, &discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names})
	if err != nil {
		return nil, err
	}
	return secrets(p, r.Resources), nil
}

func TestSDSResources(t *testing.T) {
	one := func(p *probe, name string) *tlsv3.Secret {
		e := newEnvoy(p, nil)
		e.ask(name)
		got := e.next()
		if len(got) != 1 || got[name] == nil {
			p.Fatalf("asked for %s, got %q", name, keys(got))
		}
		return got[name]
	}
	point(t, "SDS-1", func(p *probe) {
		e := newEnvoy(p, nil)
		e.ask()
		got := e.next()
		for _, id := range at.ids {
			certificate(p, got[id], id)
		}
		if got["spiffe://"+at.td].GetValidationContext() == nil {
			p.Errorf("got %q", keys(got))
		}
	}, withSDS)
	point(t, "SDS-2", func(p *probe) {
		for _, id := range at.ids {
			certificate(p, one(p, id), id)
		}
	}, withSDS)
	point(t, "SDS-3", func(p *probe) { certificate(p, one(p, "default"), at.ids[0]) }, withSDS)
	point(t, "SDS-4", func(p *probe) {
		for _, name := range []string{"spiffe://" + at.td, "ROOTCA"} {
			if got := trustDomains(p, one(p, name)); !slices.Equal(got, []string{at.td}) {
				p.Errorf("%s holds %q", name, got)
			}
		}
		if at.far != nil {
			if got := trustDomains(p, one(p, "spiffe://far.test")); !slices.Equal(got, []string{"far.test"}) {
				p.Errorf("far.test holds %q", got)
			}
		}
	}, withSDS)
	point(t, "SDS-5", func(p *probe) {
		if got := trustDomains(p, one(p, "ALL")); !slices.Contains(got, at.td) || at.far != nil && !slices.Contains(got, "far.test") {
			p.Errorf("ALL holds %q", got)
		}
	}, withSDS)
	point(t, "SDS-6", func(p *probe) { trustDomains(p, one(p, "ROOTCA")) }, withSDS)
	point(t, "SDS-7", func(p *probe) {
		for _, value := range []any{true, "true"} {
			e := newEnvoy(p, map[string]any{"disable_spiffe_cert_validation": value})
			e.ask("ROOTCA")
			ca := e.next()["ROOTCA"].GetValidationContext().GetTrustedCa()
			if len(readPEM(p, ca.GetInlineBytes())) == 0 {
				p.Errorf("with %v: no trusted_ca", value)
			}
		}
	}, withSDS)
}

func TestSDSAnswers(t *testing.T) {
	point(t, "SDS-11", func(p *probe) {
		foreign := "spiffe://" + at.td + "/conformance/of-somebody-else"
		e := newEnvoy(p, nil)
		e.ask(foreign)
		select {
		case r := <-e.comes:
			if got := secrets(p, r.Resources); len(got) != 0 {
				p.Errorf("got %q", keys(got))
			}
		case err := <-e.ended: // SPIRE's way; in xDS a resource that does not exist is left out
			code(p, "a foreign name", err, codes.InvalidArgument, codes.PermissionDenied)
		case <-time.After(quiet):
		}
		if got, err := fetchSecrets(p, foreign); len(got) != 0 {
			p.Errorf("FetchSecrets gives %q, %v", keys(got), err)
		}
	}, withSDS)
	point(t, "SDS-12", func(p *probe) {
		got, err := fetchSecrets(p, "default", "ROOTCA")
		p.must("FetchSecrets", err)
		certificate(p, got["default"], at.ids[0])
		trustDomains(p, got["ROOTCA"])
	}, withSDS)
	point(t, "SDS-15", func(p *probe) {
		got, err := fetchSecrets(p) // secrets does the validation
		p.must("FetchSecrets", err)
		if len(got) == 0 {
			p.Errorf("no secret")
		}
	}, withSDS)
	point(t, "SDS-16", func(p *probe) {
		_, answers := play(p, "sds")
		for a := range answers {
			if a.Code == codes.OK.String() && slices.ContainsFunc(a.IDs, func(id string) bool { return strings.Contains(id, "certificate") }) {
				p.Errorf("%s gives a stranger %q", a.RPC, a.IDs)
			}
		}
	}, withSDS, withRoot)
}

func TestSDSStreams(t *testing.T) {
	point(t, "SDS-8", func(p *probe) {
		e := newEnvoy(p, nil)
		e.ask("default")
		e.next()
		e.ask("default")
		e.silent("an ACK")
		p.must("NACK", e.st.Send(&discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: secretType, ResourceNames: []string{"default"}, ResponseNonce: e.last.Nonce,
			ErrorDetail: &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "not to my liking"}}))
		e.silent("a NACK")
	}, withSDS)
	point(t, "SDS-9", func(p *probe) {
		e := newEnvoy(p, nil)
		e.ask("default")
		e.next()
		e.ask("default", "ROOTCA")
		if got := e.next(); got["ROOTCA"] == nil {
			p.Errorf("after ROOTCA was asked for, too: %q", keys(got))
		}
		e.ask("ROOTCA")
		for got := e.next(); got["default"] != nil; got = e.next() {
			p.Errorf("after the names changed to ROOTCA: %q", keys(got))
		}
	}, withSDS)
	point(t, "SDS-10", func(p *probe) {
		e := newEnvoy(p, nil)
		e.ask("default")
		e.next()
		p.must("a stale request", e.st.Send(&discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: secretType, ResourceNames: []string{"ROOTCA"}, VersionInfo: "0", ResponseNonce: "stale"}))
		e.silent("a request with a stale nonce")
		e.ask("default", "ROOTCA")
		e.next()
	}, withSDS)
	point(t, "SDS-13", func(p *probe) {
		e := newEnvoy(p, nil)
		e.ask()
		e.next()
		version := e.last.VersionInfo
		e.ask()
		id := "spiffe://" + at.td + "/conformance/nine"
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/nine")})
		for got := e.next(); got[id] == nil; got = e.next() {
			e.ask()
		}
		if e.last.VersionInfo == version {
			p.Errorf("version %s as before", version)
		}
	}, withSDS, withServer)
	point(t, "SDS-14", delta, withSDS)
}

// delta subscribes, and unsubscribes, incrementally.
func delta(p *probe) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := secretv3.NewSecretDiscoveryServiceClient(at.conn).DeltaSecrets(ctx)
	p.must("DeltaSecrets", err)
	ask := func(r *discoveryv3.DeltaDiscoveryRequest) {
		r.TypeUrl, r.Node = secretType, &corev3.Node{Id: "conformance"}
		p.must("request", st.Send(r))
	}
	next := func() (*discoveryv3.DeltaDiscoveryResponse, error) { return st.Recv() }
	ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
	r, err := next()
	if status.Code(err) == codes.Unimplemented {
		p.left = "DeltaSecrets, which no standard demands, is not served"
		return
	}
	p.must("the first response", err)
	if len(r.Resources) != 1 || r.Resources[0].Name != "default" || r.Resources[0].Version == "" {
		p.Fatalf("got %v resources", len(r.Resources))
	}
	certificate(p, secrets(p, []*anypb.Any{r.Resources[0].Resource})["default"], at.ids[0])
	ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.Nonce, ResourceNamesSubscribe: []string{"ROOTCA"}, ResourceNamesUnsubscribe: []string{"default"}})
	r, err = next()
	p.must("the second response", err)
	if len(r.Resources) != 1 || r.Resources[0].Name != "ROOTCA" {
		p.Errorf("after ROOTCA was subscribed to: %v", r.Resources)
	}
}

// beSDS asks for secrets as somebody without identity.
func beSDS() int {
	conn, err := dial(socketOfRole())
	if err != nil {
		panic(err)
	}
	for _, names := range [][]string{nil, {"default"}, {"spiffe://example.org/conformance/one"}} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		r, err := secretv3.NewSecretDiscoveryServiceClient(conn).FetchSecrets(ctx, &discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names})
		cancel()
		a := answer{RPC: fmt.Sprintf("FetchSecrets %q", names), Code: status.Code(err).String()}
		for _, res := range r.GetResources() {
			s := &tlsv3.Secret{}
			if res.UnmarshalTo(s) == nil && s.GetTlsCertificate() != nil {
				a.IDs = append(a.IDs, "certificate "+s.Name)
			}
		}
		a.print()
	}
	return 0
}
