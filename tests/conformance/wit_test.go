// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// edToken is a token with an algorithm that JWT-SVIDs may not have.
func edToken(p *probe) string {
	p.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	p.must("key", err)
	return at.far.token(p, farHeader(), jose.EdDSA, key, nil)
}

func TestWITSVIDHeader(t *testing.T) {
	point(t, "W-1", func(p *probe) {
		for _, t := range wits(p) {
			if kid, _ := t.header["kid"].(string); kid == "" {
				p.Errorf("kid %v", t.header["kid"])
			}
		}
	}, withWIT)
	point(t, "W-2", func(p *probe) {
		_, list := rawJWKS(p, witBundle(p))
		unique(p, list)
		for _, t := range wits(p) {
			verified(p, t, witBundle(p))
		}
	}, withWIT)
	point(t, "W-3", func(p *probe) {
		for _, t := range wits(p) {
			if t.header["typ"] != "wit+jwt" {
				p.Errorf("typ %v", t.header["typ"])
			}
		}
	}, withWIT)
	point(t, "W-4", func(p *probe) {
		for _, t := range wits(p) {
			if alg, _ := t.header["alg"].(string); !slices.Contains(algorithms, jose.SignatureAlgorithm(alg)) {
				p.Errorf("alg %v", t.header["alg"])
			}
		}
	}, withWIT)
	point(t, "W-5", func(p *probe) {
		for _, t := range wits(p) {
			if len(t.header) != 3 {
				p.Errorf("header %v", t.header)
			}
		}
	}, withWIT)
	point(t, "W-21", func(p *probe) {
		list := published(p, "wit-svid")
		if len(list) == 0 {
			p.Errorf("no key with the use wit-svid")
		}
		unique(p, append(list, published(p, "jwt-svid")...))
	}, withWIT, withEndpoint)
	point(t, "W-22", func(p *probe) {
		for _, s := range fetchWIT(p, "").Svids {
			invalid(p, "a WIT-SVID", s.WitSvid)
		}
		_, jwts := rawJWKS(p, jwtBundle(p))
		_, wits := rawJWKS(p, witBundle(p))
		unique(p, append(jwts, wits...))
	}, withWIT)
}

// unique wants each key to have a kid of its own.
func unique(p *probe, list []jwk) {
	p.Helper()
	seen := map[string]bool{}
	for _, k := range list {
		kid, _ := k["kid"].(string)
		if kid == "" || seen[kid] {
			p.Errorf("kid %q is empty or there twice", kid)
		}
		seen[kid] = true
	}
}

func TestWITSVIDClaims(t *testing.T) {
	point(t, "W-7", func(p *probe) {
		if got := subjects(wits(p)); !sameSet(got, at.ids) {
			p.Errorf("sub %q, want %q", got, at.ids)
		}
	}, withWIT)
	point(t, "W-8", func(p *probe) {
		for _, t := range wits(p) {
			if k := confirmation(p, t); !k.IsPublic() || !k.Valid() {
				p.Errorf("cnf.jwk is no public key")
			}
		}
	}, withWIT)
	point(t, "W-9", func(p *probe) {
		for _, t := range wits(p) {
			if alg := confirmation(p, t).Algorithm; !slices.Contains(algorithms, jose.SignatureAlgorithm(alg)) {
				p.Errorf("cnf.jwk.alg %q", alg)
			}
		}
	}, withWIT)
	point(t, "W-10", func(p *probe) {
		seen := map[any]string{}
		for range 2 {
			for _, t := range wits(p) {
				jti, ok := t.claims["jti"]
				if ok && seen[jti] != "" && seen[jti] != t.raw {
					p.Errorf("two tokens with the jti %v", jti)
				}
				seen[jti] = t.raw
			}
		}
	}, withWIT)
	point(t, "W-12", func(p *probe) {
		for _, t := range wits(p) {
			if exp, ok := t.claims["exp"].(float64); !ok || int64(exp) <= time.Now().Unix() {
				p.Errorf("exp %v", t.claims["exp"])
			}
		}
	}, withWIT)
	point(t, "W-15", func(p *probe) {
		for _, t := range wits(p) {
			if iss, ok := t.claims["iss"].(string); ok && strings.HasPrefix(iss, "https://") {
				p.Errorf("iss %q", iss)
			}
		}
	}, withWIT)
	point(t, "W-16", func(p *probe) {
		for _, t := range wits(p) {
			if aud, ok := t.claims["aud"]; ok {
				p.Errorf("aud %v", aud)
			}
		}
	}, withWIT)
}

// confirmation is the key in cnf.
func confirmation(p *probe, t token) (k jose.JSONWebKey) {
	p.Helper()
	cnf, _ := t.claims["cnf"].(map[string]any)
	text, err := json.Marshal(cnf["jwk"])
	p.must("cnf.jwk", err)
	p.must("cnf.jwk", json.Unmarshal(text, &k))
	return k
}

// privateOf wants a private JWK whose public part is that of cnf.
func privateOf(p *probe, text string, t token) {
	p.Helper()
	var k jose.JSONWebKey
	p.must("the private JWK", json.Unmarshal([]byte(text), &k))
	signer, ok := k.Key.(crypto.Signer)
	if !ok || k.IsPublic() || !samePublic(signer.Public(), confirmation(p, t).Key) {
		p.Errorf("the key is a %T, or not that of cnf", k.Key)
	}
}
