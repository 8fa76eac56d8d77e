// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// get asks the bundle endpoint. Whom it is shows TestFederation; here it may be anybody.
func get(p *probe) (*http.Response, []byte) {
	p.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Get(*endpointFlag)
	p.must("GET "+*endpointFlag, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	p.must("GET "+*endpointFlag, err)
	if resp.StatusCode != http.StatusOK {
		p.Fatalf("%s: %s", *endpointFlag, resp.Status)
	}
	return resp, body
}

// published are the keys of one use at the bundle endpoint, or with "" all.
func published(p *probe, use string) (list []jwk) {
	p.Helper()
	_, body := get(p)
	_, all := rawJWKS(p, body)
	for _, k := range all {
		if use == "" || k["use"] == use {
			list = append(list, k)
		}
	}
	return list
}

func decodeX5C(p *probe, value any) *x509.Certificate {
	p.Helper()
	text, _ := value.(string)
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	p.must("base64 of x5c", err)
	c, err := x509.ParseCertificate(der)
	p.must("certificate of x5c", err)
	return c
}

// integer reads a member of the published document.
func integer(p *probe, name string) (int64, bool) {
	p.Helper()
	_, body := get(p)
	var doc map[string]json.RawMessage
	p.must("the document", json.Unmarshal(body, &doc))
	if doc[name] == nil {
		return 0, false
	}
	var n int64
	p.must(name, json.Unmarshal(doc[name], &n))
	return n, true
}

func TestBundlePublished(t *testing.T) {
	point(t, "B-1", func(p *probe) {
		_, body := get(p)
		var set jose.JSONWebKeySet
		p.must("RFC 7517", json.Unmarshal(body, &set))
		for _, k := range set.Keys {
			if !k.Valid() || !k.IsPublic() {
				p.Errorf("key %q is no valid public key", k.KeyID)
			}
		}
	}, withEndpoint)
	point(t, "B-3", func(p *probe) {
		before, ok := integer(p, "spiffe_sequence")
		if !ok {
			p.Fatalf("no spiffe_sequence")
		}
		if at.server == nil {
			return
		}
		_, err := localauthorityv1.NewLocalAuthorityClient(at.server).PrepareJWTAuthority(p.Context(), &localauthorityv1.PrepareJWTAuthorityRequest{})
		p.must("PrepareJWTAuthority", err)
		keys := len(published(p, ""))
		eventually(p, "a higher sequence number after a key came", func() bool {
			after, _ := integer(p, "spiffe_sequence")
			return after > before
		})
		if n := len(published(p, "")); n < keys {
			p.Errorf("%d keys after %d", n, keys)
		}
	}, withEndpoint)
	point(t, "B-5", func(p *probe) {
		if n, ok := integer(p, "spiffe_refresh_hint"); !ok || n <= 0 {
			p.Errorf("spiffe_refresh_hint %d, %t", n, ok)
		}
	}, withEndpoint)
	point(t, "B-6", func(p *probe) { published(p, "") }, withEndpoint)
	point(t, "B-9", func(p *probe) {
		for _, k := range published(p, "") {
			if kty, _ := k["kty"].(string); kty == "" {
				p.Errorf("kty %v", k["kty"])
			}
		}
	}, withEndpoint)
	point(t, "B-11", func(p *probe) {
		for _, k := range published(p, "") {
			for name := range k {
				if !slices.Contains([]string{"kty", "use", "kid", "x5c", "n", "e", "crv", "x", "y"}, name) {
					p.Errorf("parameter %s", name)
				}
			}
		}
	}, withEndpoint)
}

func names(list []*types.JWTKey) (kids []string) {
	for _, k := range list {
		kids = append(kids, k.KeyId)
	}
	return kids
}

// The server consumes the bundles of those with whom it federates.
func TestBundleConsumed(t *testing.T) {
	point(t, "B-2", func(p *probe) {
		r := relate(p, "v.test")
		doc := r.far.document(r.far.x509JWK(), r.far.jwtJWK().with("kid", "bare"))
		delete(doc, "spiffe_sequence")
		delete(doc, "spiffe_refresh_hint")
		doc["something_else"] = map[string]any{"x": 1}
		r.show(doc)
		if err := r.refresh(p); err != nil || !slices.Contains(names(r.known(p).JwtAuthorities), "bare") {
			p.Errorf("a bundle without optional members: %v", err)
		}
	}, withServer)
	point(t, "B-4", func(p *probe) {
		r := relate(p, "v.test")
		doc := r.far.document(r.far.x509JWK())
		const large = 1<<62 + 1
		doc["spiffe_sequence"] = int64(large)
		r.show(doc)
		if err := r.refresh(p); err != nil || r.known(p).SequenceNumber != large {
			p.Errorf("sequence number %d, %v; want %d", r.known(p).SequenceNumber, err, int64(large))
		}
	}, withServer)
	point(t, "B-7", func(p *probe) {
		r := relate(p, "v.test")
		b := r.accepts(p, "a bundle with an unknown kty", r.far.x509JWK(), jwk{"kty": "XYZ", "use": "jwt-svid", "kid": "xyz", "z": "AA"}, r.far.jwtJWK())
		if kids := names(b.JwtAuthorities); slices.Contains(kids, "xyz") || !slices.Contains(kids, "far") {
			p.Errorf("keys %q", kids)
		}
		b = r.accepts(p, "a bundle with an unknown use", r.far.x509JWK(), coordinates(r.far.witKey).with("use", "future-svid", "kid", "future"), r.far.jwtJWK())
		if kids := names(b.JwtAuthorities); slices.Contains(kids, "future") || !slices.Contains(kids, "far") || len(b.X509Authorities) != 1 {
			p.Errorf("keys %q", kids)
		}
	}, withServer)
	point(t, "B-8", func(p *probe) {
		r := relate(p, "v.test")
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/eight"), FederatesWith: []string{"v.test"}})
		good := r.far.token(p, farHeader(), jose.ES256, r.far.jwtKey, nil)
		eventually(p, "a token of v.test to be valid", func() bool { _, err := validate(p, good); return err == nil })
		r.show(r.far.document([]jwk{}...))
		_ = r.refresh(p) // how the server says it is its own affair
		eventually(p, "its tokens to be refused", func() bool { _, err := validate(p, good); return err != nil })
		if b := r.known(p); len(b.JwtAuthorities)+len(b.X509Authorities) != 0 {
			p.Errorf("the bundle has %d and %d keys", len(b.X509Authorities), len(b.JwtAuthorities))
		}
	}, withServer)
	point(t, "B-10", func(p *probe) {
		for _, k := range published(p, "") {
			if use, _ := k["use"].(string); use == "" {
				p.Errorf("use %v", k["use"])
			}
		}
		if at.server == nil {
			return
		}
		r := relate(p, "v.test")
		without := coordinates(r.far.witKey).with("kid", "without")
		upper := maps.Clone(without).with("kid", "upper", "use", "JWT-SVID")
		if kids := names(r.accepts(p, "a bundle with a key without use", r.far.x509JWK(), without, upper).JwtAuthorities); slices.Contains(kids, "without") || slices.Contains(kids, "upper") {
			p.Errorf("keys %q", kids)
		}
	}, withEndpoint)
}

// coordinate is the x of an EC certificate's key as a JWK has it, else "".
func coordinate(c *x509.Certificate) string {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return ""
	}
	point, err := key.Bytes()
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(point[1 : 1+(len(point)-1)/2])
}
