// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// signed makes a leaf below an authority, and the bundle that has it.
func signed(t *testing.T, change func(*x509.Certificate)) (chain []*x509.Certificate, b *spiffebundle.Bundle, key *ecdsa.PrivateKey) {
	t.Helper()
	by := newKey(t)
	ca := issue(t, "ca", []byte{1}, nil, by)
	key = newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}, spiffebundle.FromX509Authorities(td, []*x509.Certificate{ca}), key
}

func TestCheckX509(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		says   string // "": it is good
	}{
		"good":                                   {nil, ""},
		"by a clock a little ahead":              {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(skew / 2) }, ""},
		"by a clock far ahead":                   {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(2 * skew) }, "not yet valid"},
		"expired":                                {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, "expired"},
		"ends before it begins, a little ahead":  {func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(skew/2), time.Now().Add(skew/4) }, "expired"},
		"of another":                             {func(c *x509.Certificate) { c.URIs[0].Path += "x" }, "an X.509-SVID of"},
		"a CA":                                   {func(c *x509.Certificate) { c.IsCA = true }, "CA flag"},
		"one that may sign, and says it is none": {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "KeyCertSign"},
	} {
		chain, b, key := signed(t, func(tmpl *x509.Certificate) {
			u := *tmpl.URIs[0]
			tmpl.URIs = []*url.URL{&u}
			if c.change != nil {
				c.change(tmpl)
			}
		})
		err := CheckX509(chain, b, id, key.Public(), time.Now())
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	chain, b, key := signed(t, nil)
	if err := CheckX509(chain, b, id, newKey(t).Public(), time.Now()); err == nil {
		t.Error("another key was taken")
	}
	if err := CheckX509(chain, b, id, []byte("no key"), time.Now()); err == nil {
		t.Error("something that is no key was taken")
	}
	_, foreign, _ := signed(t, nil)
	if err := CheckX509(chain, foreign, id, key.Public(), time.Now()); err == nil {
		t.Error("a foreign authority was believed")
	}
}

func TestCheckTokens(t *testing.T) {
	key, holder := newKey(t), newKey(t)
	b := spiffebundle.New(td)
	if err := b.AddJWTAuthority("j", key.Public()); err != nil {
		t.Fatal(err)
	}
	if err := b.AddWITAuthority("w", key.Public()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	mint := func(kid string, by crypto.Signer, claims map[string]any) Token {
		t.Helper()
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: by, KeyID: kid}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]any{"sub": id.String(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
		for k, v := range claims {
			all[k] = v
		}
		text, err := jwt.Signed(s).Claims(all).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		out, err := ReadToken(text, id)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	aud := func(a ...string) map[string]any { return map[string]any{"aud": a} }
	cnf := map[string]any{"cnf": map[string]any{"jwk": jose.JSONWebKey{Key: holder.Public()}}}
	for name, c := range map[string]struct {
		err  error
		good bool
	}{
		"good":                         {mint("j", key, aud("a", "b")).CheckJWT(b, []string{"b", "a"}, now), true},
		"one audience":                 {mint("j", key, map[string]any{"aud": "a"}).CheckJWT(b, []string{"a"}, now), true},
		"said twice":                   {mint("j", key, aud("a")).CheckJWT(b, []string{"a", "a"}, now), true},
		"an audience more":             {mint("j", key, aud("a", "b")).CheckJWT(b, []string{"a"}, now), false},
		"an audience less":             {mint("j", key, aud("a")).CheckJWT(b, []string{"a", "b"}, now), false},
		"no audience":                  {mint("j", key, nil).CheckJWT(b, []string{"a"}, now), false},
		"another key":                  {mint("j", holder, aud("a")).CheckJWT(b, []string{"a"}, now), false},
		"a WIT authority":              {mint("w", key, aud("a")).CheckJWT(b, []string{"a"}, now), false},
		"at its end":                   {mint("j", key, aud("a")).CheckJWT(b, []string{"a"}, now.Add(time.Minute)), false},
		"by a clock a little ahead":    {mint("j", key, aud("a")).CheckJWT(b, []string{"a"}, now.Add(-skew/2)), true},
		"by a clock far ahead":         {mint("j", key, aud("a")).CheckJWT(b, []string{"a"}, now.Add(-2*skew)), false},
		"WIT":                          {mint("w", key, cnf).CheckWIT(b, holder.Public(), now), true},
		"WIT of another holder":        {mint("w", key, cnf).CheckWIT(b, key.Public(), now), false},
		"WIT of nobody":                {mint("w", key, nil).CheckWIT(b, holder.Public(), now), false},
		"WIT by a JWT authority":       {mint("j", key, cnf).CheckWIT(b, holder.Public(), now), false},
		"WIT of who has no public key": {mint("w", key, cnf).CheckWIT(b, nil, now), false},
	} {
		if (c.err == nil) != c.good {
			t.Errorf("%s: %v", name, c.err)
		}
	}
}
