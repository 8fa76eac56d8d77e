// SPDX-License-Identifier: Apache-2.0

package oidc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/assay-id/assay/server/oidc"
)

// get asks the provider as host and returns status, body and headers.
func get(t *testing.T, h http.Handler, method, host, path string, header http.Header) (int, string, http.Header) {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	if header != nil {
		req.Header = header
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func provider(t *testing.T, keys *[]oidc.Key, change func(*oidc.Config)) *oidc.Provider {
	t.Helper()
	c := oidc.Config{Keys: func() []oidc.Key { return *keys }, Domains: []string{"id.example.org", "other.example.org"}}
	if change != nil {
		change(&c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return oidc.New(c)
}

const wellKnown = "/.well-known/openid-configuration"

func TestDiscovery(t *testing.T) {
	keys := []oidc.Key{}
	for name, c := range map[string]struct {
		change             func(*oidc.Config)
		host, path         string
		status             int
		issuer, keys, says string
	}{
		"plain":          {nil, "id.example.org", wellKnown, 200, "https://id.example.org", "https://id.example.org/keys", ""},
		"the other host": {nil, "OTHER.example.org:8443", wellKnown, 200, "https://other.example.org:8443", "https://other.example.org:8443/keys", ""},
		"a third host":   {nil, "evil.test", wellKnown, 400, "", "", "domains"},
		"no host":        {nil, "id.example.org.evil.test", wellKnown, 400, "", "", "domains"},
		"prefix":         {func(c *oidc.Config) { c.PathPrefix = "/a/b/" }, "id.example.org", "/a/b" + wellKnown, 200, "https://id.example.org/a/b", "https://id.example.org/a/b/keys", ""},
		"not the prefix": {func(c *oidc.Config) { c.PathPrefix = "/a" }, "id.example.org", wellKnown, 404, "", "", ""},
		"set":            {func(c *oidc.Config) { c.Issuer, c.JWKSURI = "https://iss.test/x", "https://cdn.test/k" }, "id.example.org", wellKnown, 200, "https://iss.test/x", "https://cdn.test/k", ""},
		"insecure":       {func(c *oidc.Config) { c.Insecure = true }, "id.example.org", wellKnown, 200, "http://id.example.org", "http://id.example.org/keys", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, body, header := get(t, provider(t, &keys, c.change), "GET", c.host, c.path, nil)
			if status != c.status || !strings.Contains(body, c.says) {
				t.Fatalf("%d %s", status, body)
			}
			if status != 200 {
				return
			}
			var doc struct {
				Issuer string `json:"issuer"`
				Keys   string `json:"jwks_uri"`
				Algs   []string
				Types  []string `json:"response_types_supported"`
				Sub    []string `json:"subject_types_supported"`
				Sign   []string `json:"id_token_signing_alg_values_supported"`
			}
			if err := json.Unmarshal([]byte(body), &doc); err != nil || header.Get("Content-Type") != "application/json" {
				t.Fatal(err, header)
			}
			if doc.Issuer != c.issuer || doc.Keys != c.keys || len(doc.Types) == 0 || len(doc.Sub) == 0 || len(doc.Sign) == 0 {
				t.Errorf("%+v", doc)
			}
		})
	}
}

// TestKeys: a token that a key signed is validated with what is published.
func TestKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	keys := []oidc.Key{}
	p := provider(t, &keys, func(c *oidc.Config) { c.Now = func() time.Time { return now }; c.SetKeyUse = true })
	for path, want := range map[string]int{"/keys": 503, "/ready": 503, "/live": 200} {
		if status, body, _ := get(t, p, "GET", "id.example.org", path, nil); status != want {
			t.Errorf("%s without keys: %d %s", path, status, body)
		}
	}
	keys = []oidc.Key{{ID: "a", PublicKey: ec.Public()}, {ID: "b", PublicKey: weak.Public()}}
	if status, _, _ := get(t, p, "GET", "anything", "/ready", nil); status != 200 {
		t.Errorf("/ready with keys: %d", status)
	}
	status, body, header := get(t, p, "GET", "id.example.org", "/keys", nil)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(body), &set); status != 200 || err != nil || len(set.Keys) != 2 || set.Keys[0].Use != "sig" {
		t.Fatal(status, body, err)
	}
	for kid, key := range map[string]jose.SigningKey{"a": {Algorithm: jose.ES256, Key: ec}, "b": {Algorithm: jose.RS256, Key: weak}} {
		signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithHeader("kid", kid))
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: "spiffe://example.org/w"}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
		if err != nil {
			t.Fatal(err)
		}
		var claims jwt.Claims
		if err := token.Claims(&set, &claims); err != nil || claims.Subject != "spiffe://example.org/w" {
			t.Errorf("a token signed by %s: %v, %+v", kid, err, claims)
		}
	}

	// T9: unchanged keys are unchanged answers, whenever they are asked for.
	etag, modified := header.Get("ETag"), header.Get("Last-Modified")
	now = now.Add(time.Hour)
	_, again, header := get(t, p, "GET", "id.example.org", "/keys", nil)
	if again != body || header.Get("ETag") != etag || header.Get("Last-Modified") != modified || etag == "" || modified == "" {
		t.Errorf("unchanged keys have %v, and had %s %s", header, etag, modified)
	}
	if status, _, _ := get(t, p, "GET", "id.example.org", "/keys", http.Header{"If-Modified-Since": {modified}}); status != 304 {
		t.Errorf("If-Modified-Since: %d", status)
	}
	if _, _, other := get(t, provider(t, &keys, func(c *oidc.Config) { c.SetKeyUse = true }), "GET", "id.example.org", "/keys", nil); other.Get("ETag") != etag {
		t.Error("another server has another ETag for the same keys")
	}
	keys = keys[:1]
	_, _, header = get(t, p, "GET", "id.example.org", "/keys", nil)
	if header.Get("ETag") == etag || header.Get("Last-Modified") == modified {
		t.Errorf("changed keys have %v", header)
	}
	if status, _, _ := get(t, p, "POST", "id.example.org", "/keys", nil); status != 405 {
		t.Errorf("POST: %d", status)
	}
	if status, _, _ := get(t, p, "GET", "evil.test", "/keys", nil); status != 400 {
		t.Errorf("keys for another host: %d", status)
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(*oidc.Config){
		"name at least one":    func(c *oidc.Config) { c.Domains = nil },
		"is not a host name":   func(c *oidc.Config) { c.Domains = []string{"https://x"} },
		"jwt_issuer":           func(c *oidc.Config) { c.Issuer = "http://x" },
		"jwks_uri":             func(c *oidc.Config) { c.JWKSURI = "https://x/?a=b" },
		`server_path_prefix "`: func(c *oidc.Config) { c.PathPrefix = "x" },
		"server_path_prefix":   func(c *oidc.Config) { c.PathPrefix = "/a/../b" },
	} {
		c := oidc.Config{Domains: []string{"x"}}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}
