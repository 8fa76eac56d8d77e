// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/storetest"
)

var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256}

// parts decodes a compact JWS.
func parts(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	split := strings.Split(token, ".")
	if len(split) != 3 {
		t.Fatalf("%d parts, want a compact JWS (J-1, W-1)", len(split))
	}
	for i, to := range []*map[string]any{&header, &claims} {
		data, err := base64.RawURLEncoding.DecodeString(split[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, to); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func names(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// TestJWTSVID: J-1, J-2, J-3, J-6, J-7, J-8, J-11, J-14 of research/spire-features.md §B3.
func TestJWTSVID(t *testing.T) {
	clk := &clock{t: time.Now()}
	id := spiffeid.RequireFromPath(td, "/w")
	for kind, algorithm := range map[keys.Type]string{keys.ECP256: "ES256", keys.ECP384: "ES384", keys.RSA2048: "RS256"} {
		c, err := ca.Open(t.Context(), ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: storetest.Open(t), JWTKeyType: kind, JWTIssuer: "https://issuer", Now: clk.now})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		token, err := c.SignJWT(ca.JWTRequest{ID: id, Audience: []string{"", "one", "two"}})
		if err != nil {
			t.Fatal(err)
		}
		header, claims := parts(t, token.Token)
		b, _ := c.Bundle()
		if header["alg"] != algorithm || header["typ"] != "JWT" || header["kid"] != b.JWT[0].ID || len(header) != 3 || len(token.KeyID) != 32 {
			t.Errorf("%s: header %v", kind, header)
		}
		if !slices.Equal(names(claims), []string{"aud", "exp", "iat", "iss", "sub"}) || claims["sub"] != id.String() || claims["iss"] != "https://issuer" ||
			claims["exp"] != float64(token.ExpiresAt.Unix()) || claims["iat"] != float64(token.IssuedAt.Unix()) || token.ExpiresAt.Sub(token.IssuedAt) != 5*time.Minute {
			t.Errorf("%s: claims %v", kind, claims)
		}
		authorities := jwtbundle.FromJWTAuthorities(td, map[string]crypto.PublicKey{b.JWT[0].ID: b.JWT[0].PublicKey})
		svid, err := jwtsvid.ParseAndValidate(token.Token, authorities, []string{"two"})
		if err != nil || !slices.Equal(svid.Audience, []string{"one", "two"}) {
			t.Errorf("%s: a validator says %v, %v", kind, svid, err)
		}
		// What signs JWT-SVIDs does not verify a WIT, nor the other way round (J-15, W-22).
		if b.JWT[0].ID == b.WIT[0].ID {
			t.Error("one kid for two keys")
		}
		c.Close()
	}
}

func TestJWTLimits(t *testing.T) {
	clk := &clock{t: time.Now()}
	c := open(t, storetest.Open(t), t.TempDir(), clk)
	id := spiffeid.RequireFromPath(td, "/w")
	b, _ := c.Bundle()
	long, err := c.SignJWT(ca.JWTRequest{ID: id, Audience: []string{"a"}, TTL: 48 * time.Hour, JTI: true})
	if err != nil || !long.ExpiresAt.Equal(b.JWT[0].ExpiresAt) {
		t.Errorf("a long token ends at %v (%v), want the key's end %v", long.ExpiresAt, err, b.JWT[0].ExpiresAt)
	}
	_, claims := parts(t, long.Token)
	raw, err := base64.RawURLEncoding.DecodeString(claims["jti"].(string))
	if err != nil || len(raw) != 16 {
		t.Errorf("jti %v: %v", claims["jti"], err)
	}
	if _, has := claims["iss"]; has {
		t.Error("an issuer that is not configured")
	}
	for what, req := range map[string]ca.JWTRequest{
		"no audience":          {ID: id},
		"empty audience":       {ID: id, Audience: []string{"", ""}},
		"another trust domain": {ID: spiffeid.RequireFromString("spiffe://other.org/w"), Audience: []string{"a"}},
		"no path":              {ID: td.ID(), Audience: []string{"a"}},
		"no ID":                {Audience: []string{"a"}},
	} {
		if _, err := c.SignJWT(req); !errors.Is(err, ca.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	clk.advance(24*time.Hour + time.Second)
	if _, err := c.SignJWT(ca.JWTRequest{ID: id, Audience: []string{"a"}}); !errors.Is(err, ca.ErrNotReady) {
		t.Errorf("an expired key signs: %v", err)
	}
}

// TestWITSVID: W-1 to W-5, W-7 to W-9, W-12, W-15, W-16 of research/spire-features.md §B4.
func TestWITSVID(t *testing.T) {
	c := open(t, storetest.Open(t), t.TempDir(), &clock{t: time.Now()})
	id := spiffeid.RequireFromPath(td, "/w")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(e elliptic.Curve) crypto.PublicKey {
		k, err := ecdsa.GenerateKey(e, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	p256, p384, p521 := curve(elliptic.P256()), curve(elliptic.P384()), curve(elliptic.P521())
	for _, test := range []struct {
		key       crypto.PublicKey
		algorithm string
		ok        bool
	}{
		{p256, "ES256", true}, {p384, "ES384", true}, {p521, "ES512", true}, {rsaKey.Public(), "RS256", true}, {rsaKey.Public(), "RS512", true},
		{rsaKey.Public(), "PS256", true}, {rsaKey.Public(), "PS384", true}, {rsaKey.Public(), "PS512", true},
		{p256, "ES384", false}, {p384, "ES256", false}, {rsaKey.Public(), "ES256", false}, {p256, "RS256", false}, {p256, "", false},
		{p256, "none", false}, {p256, "HS256", false}, {small.Public(), "RS256", false}, {nil, "ES256", false},
	} {
		token, err := c.SignWIT(ca.WITRequest{ID: id, PublicKey: test.key, Algorithm: test.algorithm, JTI: true})
		if !test.ok {
			if !errors.Is(err, ca.ErrInvalid) {
				t.Errorf("%T with %q: %v", test.key, test.algorithm, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		header, claims := parts(t, token.Token)
		if header["typ"] != "wit+jwt" || header["alg"] != "ES256" || header["kid"] != token.KeyID || len(header) != 3 {
			t.Errorf("header %v", header)
		}
		if !slices.Equal(names(claims), []string{"cnf", "exp", "iat", "jti", "sub"}) || token.ExpiresAt.Sub(token.IssuedAt) != time.Hour {
			t.Errorf("claims %v", claims)
		}
		holds(t, c, token.Token, test.key, test.algorithm)
	}
}

// holds checks a WIT's signature by the bundle and the key that it is for.
func holds(t *testing.T, c *ca.CA, token string, want crypto.PublicKey, algorithm string) {
	t.Helper()
	b, _ := c.Bundle()
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Confirmation struct {
			JWK jose.JSONWebKey `json:"jwk"`
		} `json:"cnf"`
	}
	if err := parsed.Claims(b.WIT[0].PublicKey, &claims); err != nil {
		t.Fatal(err)
	}
	if err := parsed.Claims(b.JWT[0].PublicKey, &claims); err == nil {
		t.Error("a JWT authority verifies a WIT")
	}
	jwk := claims.Confirmation.JWK
	if jwk.Algorithm != algorithm || !jwk.Key.(interface{ Equal(crypto.PublicKey) bool }).Equal(want) {
		t.Errorf("cnf %+v", jwk)
	}
}
