// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"mime"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// handshake does one TLS handshake with the bundle endpoint.
func handshake(p *probe, config *tls.Config) (tls.ConnectionState, error) {
	p.Helper()
	u, err := url.Parse(*endpointFlag)
	p.must("-bundle-endpoint", err)
	address := u.Host
	if u.Port() == "" {
		address += ":443"
	}
	config.InsecureSkipVerify = true
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), nil
}

func TestFederationServed(t *testing.T) {
	point(t, "F-7", func(p *probe) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if _, err := handshake(p, &tls.Config{MinVersion: version, MaxVersion: version}); err != nil {
				p.Errorf("%s: %v", tls.VersionName(version), err)
			}
		}
		if _, err := handshake(p, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
			p.Errorf("TLS 1.1 is accepted")
		}
		// The intermediate profile has no suite with CBC, RC4, 3DES or RSA key exchange.
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if strings.Contains(s.Name, "GCM") && strings.Contains(s.Name, "ECDHE") || strings.Contains(s.Name, "CHACHA") || s.SupportedVersions[0] == tls.VersionTLS13 {
				continue
			}
			if _, err := handshake(p, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{s.ID}}); err == nil {
				p.Errorf("%s is accepted", s.Name)
			}
		}
	}, withEndpoint)
	point(t, "F-13", func(p *probe) {
		_, err := handshake(p, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }})
		p.must("without a certificate", err)
		get(p) // without credentials
	}, withEndpoint)
	point(t, "F-14", func(p *probe) {
		resp, body := get(p)
		if !utf8.Valid(body) {
			p.Errorf("not UTF-8")
		}
		if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			p.Errorf("Content-Type %q", resp.Header.Get("Content-Type"))
		}
		// What the endpoint shows is what workloads have.
		for _, k := range published(p, "x509-svid") {
			c := decodeX5C(p, k["x5c"].([]any)[0])
			if !containsCert(svids(p)[0].bundle, c) {
				p.Errorf("%s is not in the workloads' bundle", c.Subject)
			}
		}
	}, withEndpoint)
	point(t, "F-21", func(p *probe) {
		state, err := handshake(p, &tls.Config{})
		p.must("handshake", err)
		s := &svid{id: *profileFlag, chain: state.PeerCertificates, bundle: svids(p)[0].bundle}
		verify(p, s)
		leaf := s.leaf()
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != *profileFlag || leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
			p.Errorf("URIs %v, cA %t, key usage %b; want an SVID for %s", leaf.URIs, leaf.IsCA, leaf.KeyUsage, *profileFlag)
		}
	}, withEndpoint, withSPIFFE)
}

func containsCert(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, other := range list {
		if other.Equal(c) {
			return true
		}
	}
	return false
}

// configure tries to make a relationship with v.test, and removes it.
func configure(p *probe, change func(r *types.FederationRelationship)) error {
	p.Helper()
	rel := &types.FederationRelationship{TrustDomain: "v.test", BundleEndpointUrl: "https://127.0.0.1:1/", BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}}
	change(rel)
	client := trustdomainv1.NewTrustDomainClient(at.server)
	r, err := client.BatchCreateFederationRelationship(p.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: []*types.FederationRelationship{rel}})
	if err != nil {
		return err
	}
	_, _ = client.BatchDeleteFederationRelationship(p.Context(), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"v.test"}})
	return statusError(r.Results[0].Status)
}

func TestFederationConfigured(t *testing.T) {
	spiffe := func(id string) func(r *types.FederationRelationship) {
		return func(r *types.FederationRelationship) {
			r.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: id}}
		}
	}
	point(t, "F-6", func(p *probe) {
		p.must("https_web", configure(p, func(*types.FederationRelationship) {}))
		p.must("https_spiffe", configure(p, spiffe("spiffe://v.test/e")))
	}, withServer)
	point(t, "F-8", func(p *probe) {
		code(p, "no URL", configure(p, func(r *types.FederationRelationship) { r.BundleEndpointUrl = "" }), codes.InvalidArgument)
		code(p, "no profile", configure(p, func(r *types.FederationRelationship) { r.BundleEndpointProfile = nil }), codes.InvalidArgument)
		code(p, "no trust domain", configure(p, func(r *types.FederationRelationship) { r.TrustDomain = "" }), codes.InvalidArgument)
	}, withServer)
	point(t, "F-10", func(p *probe) {
		for _, u := range []string{"http://127.0.0.1:1/", "https://user@127.0.0.1:1/", "https://user:pass@127.0.0.1:1/", "ftp://127.0.0.1/", "127.0.0.1:1"} {
			for what, profile := range map[string]func(r *types.FederationRelationship){"https_web": func(*types.FederationRelationship) {}, "https_spiffe": spiffe("spiffe://v.test/e")} {
				code(p, what+" at "+u, configure(p, func(r *types.FederationRelationship) { profile(r); r.BundleEndpointUrl = u }), codes.InvalidArgument)
			}
		}
	}, withServer)
	point(t, "F-18", func(p *probe) {
		code(p, "https_spiffe without an ID", configure(p, spiffe("")), codes.InvalidArgument)
		code(p, "https_spiffe without an ID", configure(p, spiffe("https://v.test/e")), codes.InvalidArgument)
		f, err := newFar("v.test")
		p.must("far trust domain", err)
		r := &relation{endpoint: f.serve(p), id: "spiffe://v.test" + endpointPath}
		p.must("a relationship without a bundle", r.createWith(p, r.url, r.id, nil))
		p.Cleanup(func() { r.end(p) })
		if err := r.refresh(p); err == nil {
			p.Errorf("an endpoint is believed whose trust domain nobody knows")
		}
	}, withServer)
}

func TestFederationFetched(t *testing.T) {
	point(t, "F-4", func(p *probe) {
		r := relate(p, "v.test")
		old := r.far.document(r.far.x509JWK(), r.far.jwtJWK().with("kid", "old"))
		r.accepts(p, "a newer bundle", r.far.x509JWK())
		r.show(old)
		_ = r.refresh(p) // to say so is not demanded
		if slices.Contains(names(r.known(p).JwtAuthorities), "old") {
			p.Errorf("a bundle with an older sequence number took the place of a newer one")
		}
	}, withServer)
	point(t, "F-5", func(p *probe) {
		r := relate(p, "v.test")
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/six"), FederatesWith: []string{"v.test"}})
		good := r.far.token(p, farHeader(), jose.ES256, r.far.jwtKey, nil)
		eventually(p, "a token of v.test to be valid", func() bool { _, err := validate(p, good); return err == nil })
		invalid(p, "a token of v.test by far.test", at.far.token(p, farHeader(), jose.ES256, at.far.jwtKey, map[string]any{"sub": "spiffe://v.test/w"}))
		m := x509Response(p)
		for td, f := range map[string]*far{"spiffe://v.test": r.far, "spiffe://far.test": at.far} {
			if list, err := x509.ParseCertificates(m.FederatedBundles[td]); err != nil || len(list) != 1 || !list[0].Equal(f.ca) {
				p.Errorf("bundle of %s: %d certificates, %v", td, len(list), err)
			}
		}
	}, withServer)
	point(t, "F-9", func(p *probe) {
		for td, bundle := range x509Response(p).FederatedBundles {
			list, err := x509.ParseCertificates(bundle)
			if err != nil || len(list) != 1 || list[0].URIs[0].String() != td {
				p.Errorf("bundle of %s: %d certificates, %v", td, len(list), err)
			}
		}
		if x509Response(p).FederatedBundles["spiffe://far.test"] == nil {
			p.Errorf("no X.509 bundle of far.test")
		}
		st, err := at.api.FetchJWTBundles(call(p), &pb.JWTBundlesRequest{})
		if m := first(p, st, err); m.Bundles["spiffe://far.test"] == nil {
			p.Errorf("JWT bundles of %q", keys(m.Bundles))
		}
	}, withServer)
	point(t, "F-17", func(p *probe) {
		r := relate(p, "v.test")
		r.mu.Lock()
		r.redirect = "/elsewhere"
		r.mu.Unlock()
		r.accepts(p, "a bundle behind a redirect", r.far.x509JWK())
	}, withServer)
	point(t, "F-20", func(p *probe) {
		r := relate(p, "v.test")
		// far.test has the bundle of v2.test; the endpoint's own bundle is not that one.
		f, err := newFar("v2.test")
		p.must("far trust domain", err)
		other := &relation{endpoint: f.serve(p), id: r.id}
		other.far = f
		p.must("create the relationship", other.create(p, other.url, r.id))
		p.Cleanup(func() { other.end(p); at.deleteBundle("v2.test") })
		template := r.far.leafTemplate()
		other.far = r.far
		other.present(p, template)
		other.far = f
		other.accepts(p, "a bundle from an endpoint of another trust domain", f.x509JWK())
		template = f.leafTemplate()
		template.URIs = r.far.leafTemplate().URIs
		other.present(p, template)
		other.refuses(p, "an endpoint certified by the trust domain whose bundle it has")
	}, withServer)
}

func TestFederationOverTime(t *testing.T) {
	point(t, "F-22", func(p *probe) {
		r := relate(p, "v.test")
		template := r.far.leafTemplate()
		template.URIs[0].Path = "/another"
		r.present(p, template)
		r.refuses(p, "an SVID for another ID")
	}, withServer)
	point(t, "F-23", func(p *probe) {
		r := relate(p, "v.test")
		next, err := newFar("v.test")
		p.must("a new CA", err)
		b := r.accepts(p, "a bundle with the new CA alone", next.x509JWK())
		if len(b.X509Authorities) != 1 || !bytes.Equal(b.X509Authorities[0].Asn1, next.ca.Raw) {
			p.Fatalf("%d authorities", len(b.X509Authorities))
		}
		r.refuses(p, "the former CA")
		r.far = next
		r.present(p, next.leafTemplate())
		r.accepts(p, "the new CA", next.x509JWK())
	}, withServer)
	point(t, "F-25", func(p *probe) {
		r := relate(p, "v.test")
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/seven"), FederatesWith: []string{"v.test"}})
		good := r.far.token(p, farHeader(), jose.ES256, r.far.jwtKey, nil)
		eventually(p, "a token of v.test to be valid", func() bool { _, err := validate(p, good); return err == nil })
		r.end(p)
		at.deleteBundle("v.test")
		eventually(p, "its tokens to be refused", func() bool { _, err := validate(p, good); return err != nil })
		eventually(p, "its bundle to be gone", func() bool { return x509Response(p).FederatedBundles["spiffe://v.test"] == nil })
	}, withServer)
}
