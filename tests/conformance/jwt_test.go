// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

func TestJWTSVID(t *testing.T) {
	point(t, "J-2", func(p *probe) {
		for _, t := range tokens(p) {
			for name := range t.header {
				if !slices.Contains([]string{"alg", "kid", "typ"}, name) {
					p.Errorf("header %s", name)
				}
			}
		}
	})
	point(t, "J-3", func(p *probe) {
		for _, t := range tokens(p) {
			if alg, _ := t.header["alg"].(string); !slices.Contains(algorithms, jose.SignatureAlgorithm(alg)) {
				p.Errorf("alg %v", t.header["alg"])
			}
		}
	})
	point(t, "J-6", func(p *probe) {
		for _, t := range tokens(p) {
			if typ, ok := t.header["typ"]; ok && typ != "JWT" && typ != "JOSE" {
				p.Errorf("typ %v", typ)
			}
		}
	})
	point(t, "J-7", func(p *probe) {
		if got := subjects(fetchJWT(p, "db")); !sameSet(got, at.ids) {
			p.Errorf("sub %q, want %q", got, at.ids)
		}
	})
	point(t, "J-8", func(p *probe) {
		for _, t := range tokens(p) {
			if list := audience(t); len(list) == 0 {
				p.Errorf("aud %v", t.claims["aud"])
			}
		}
	})
	point(t, "J-11", func(p *probe) {
		for _, t := range tokens(p) {
			if exp, ok := t.claims["exp"].(float64); !ok || exp != float64(int64(exp)) || int64(exp) <= time.Now().Unix() {
				p.Errorf("exp %v", t.claims["exp"])
			}
		}
	})
	point(t, "J-14", func(p *probe) {
		list := published(p, "jwt-svid")
		if len(list) == 0 {
			p.Errorf("no key with the use jwt-svid")
		}
		for _, k := range list {
			if kid, _ := k["kid"].(string); kid == "" {
				p.Errorf("kid %v", k["kid"])
			}
		}
	}, withEndpoint)
}

func subjects(list []token) (subs []string) {
	for _, t := range list {
		sub, _ := t.claims["sub"].(string)
		subs = append(subs, sub)
	}
	return subs
}

// audience is a token's, as a list.
func audience(t token) (list []string) {
	switch aud := t.claims["aud"].(type) {
	case string:
		return []string{aud}
	case []any:
		for _, a := range aud {
			s, _ := a.(string)
			list = append(list, s)
		}
	}
	return list
}

// The agent validates JWT-SVIDs: ours, and those of far whose key we have.
func TestJWTSVIDValidation(t *testing.T) {
	sign := func(p *probe, change map[string]any) string {
		return at.far.token(p, farHeader(), jose.ES256, at.far.jwtKey, change)
	}
	point(t, "J-1", func(p *probe) {
		for _, t := range tokens(p) {
			if strings.Count(t.raw, ".") != 2 || strings.ContainsAny(t.raw, "{}\" ") {
				p.Errorf("not compact: %s", t.raw)
			}
		}
		own := strings.Split(fetchJWT(p, "db")[0].raw, ".")
		flat, err := json.Marshal(map[string]any{"protected": own[0], "payload": own[1], "signature": own[2]})
		p.must("flattened", err)
		full, err := json.Marshal(map[string]any{"payload": own[1], "signatures": []any{map[string]any{"protected": own[0], "signature": own[2]}}})
		p.must("general", err)
		invalid(p, "flattened JSON", string(flat))
		invalid(p, "general JSON", string(full))
	})
	point(t, "J-4", func(p *probe) {
		valid(p, "a good token", sign(p, nil))
		none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"far","typ":"JWT"}`))
		parts := strings.Split(sign(p, nil), ".")
		invalid(p, "alg none", none+"."+parts[1]+".")
		invalid(p, "alg none with a signature", none+"."+parts[1]+"."+parts[2])
		point, err := at.far.jwtKey.PublicKey.Bytes()
		p.must("public key", err)
		for _, alg := range []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512} {
			invalid(p, string(alg)+" by the public key", at.far.token(p, farHeader(), alg, append(point, make([]byte, 64)...), nil))
		}
		invalid(p, "EdDSA", edToken(p))
	}, withServer)
	point(t, "J-9", func(p *probe) {
		invalid(p, "no aud", sign(p, map[string]any{"aud": nil}))
		invalid(p, "an empty aud", sign(p, map[string]any{"aud": []string{}}))
		invalid(p, "another aud", sign(p, map[string]any{"aud": []string{"other", "DB"}}))
		valid(p, "aud with others", sign(p, map[string]any{"aud": []string{"other", "db"}}))
	}, withServer)
	point(t, "J-12", func(p *probe) {
		invalid(p, "no exp", sign(p, map[string]any{"exp": nil}))
		invalid(p, "expired", sign(p, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}))
		invalid(p, "exp as text", sign(p, map[string]any{"exp": "2999-01-01"}))
		invalid(p, "exp 0", sign(p, map[string]any{"exp": 0}))
	}, withServer)
	point(t, "J-15", func(p *probe) {
		valid(p, "a good token", sign(p, nil))
		wit := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "wit")
		invalid(p, "a token by the key of WIT-SVIDs", at.far.token(p, wit, jose.ES256, at.far.witKey, nil))
		invalid(p, "a token by the CA's key", at.far.token(p, farHeader(), jose.ES256, at.far.caKey, nil))
		invalid(p, "a token by the CA's key without kid", at.far.token(p, (&jose.SignerOptions{}).WithType("JWT"), jose.ES256, at.far.caKey, nil))
	}, withServer)
	point(t, "J-16", func(p *probe) {
		once := sign(p, nil)
		valid(p, "a token", once)
		valid(p, "the token again", once)
		_, err := at.api.ValidateJWTSVID(call(p), &pb.ValidateJWTSVIDRequest{Audience: "other", Svid: once})
		code(p, "for another audience", err, codes.InvalidArgument)
	}, withServer)
}
