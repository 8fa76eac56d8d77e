// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
)

func (e *env) ownBundle() *types.Bundle {
	e.t.Helper()
	b, err := e.admin.bundle.GetBundle(e.t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

func pkixOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// token reads the two parts of a compact JWS without judging it.
func token(t *testing.T, compact string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no compact JWS", compact)
	}
	for i, to := range []*map[string]any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(raw, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func names(m map[string]any) (out []string) {
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// jwtBundle holds keys as validators of JWT-SVIDs have them.
func jwtBundle(t *testing.T, keys map[string][]byte) *jwtbundle.Bundle {
	t.Helper()
	b := jwtbundle.New(td)
	for id, der := range keys {
		key, err := x509.ParsePKIXPublicKey(der)
		if err == nil {
			err = b.AddJWTAuthority(id, key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestJWTSVIDs: what the server issues, by the standard's requirements (J-…) and SPIRE's habits.
func TestJWTSVIDs(t *testing.T) {
	e := start(t, func(c *server.Config) { c.JWTIssuer = "https://issuer.example" })
	a := e.newAgent()
	es := e.create(
		&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7"), JwtSvidTtl: 77, AdditionalAttributes: &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true}},
		&types.Entry{ParentId: a.id, SpiffeId: sid("/plain"), Selectors: sel("unix", "uid:7")},
	)
	polled, err := a.svid.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: es[1].Id, Audience: []string{"one", "", "two"}})
	if err != nil {
		t.Fatal(err)
	}
	proven, err := a.node.SignJWTSVID(t.Context(), &nodev1.SignJWTSVIDRequest{EntryId: es[0].Id, Audience: []string{"one"}, Facts: facts(7)})
	if err != nil {
		t.Fatal(err)
	}
	minted, err := e.admin.svid.MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: sid("/minted"), Audience: []string{"one"}, Ttl: 33})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]byte{}
	for _, k := range e.ownBundle().JwtAuthorities {
		keys[k.KeyId] = k.PublicKey
	}
	for path, c := range map[string]struct {
		svid *types.JWTSVID
		life int64
		aud  []any
		jti  bool
	}{
		"/plain": {polled.Svid, 300, []any{"one", "two"}, false}, "/w": {proven.Svid, 77, []any{"one"}, true}, "/minted": {minted.Svid, 33, []any{"one"}, false},
	} {
		t.Run(path, func(t *testing.T) {
			header, claims := token(t, c.svid.Token) // J-1
			if got := names(header); !slices.Equal(got, []string{"alg", "kid", "typ"}) || header["alg"] != "ES256" || header["typ"] != "JWT" || keys[header["kid"].(string)] == nil {
				t.Errorf("J-2, J-3, J-5, J-6: header %v", header)
			}
			if claims["sub"] != "spiffe://example.org"+path || c.svid.Id.Path != path {
				t.Errorf("J-7: subject %v, id %v", claims["sub"], c.svid.Id)
			}
			if aud, ok := claims["aud"].([]any); !ok || !slices.Equal(aud, c.aud) {
				t.Errorf("J-8: audience %v", claims["aud"])
			}
			exp, iat := int64(claims["exp"].(float64)), int64(claims["iat"].(float64))
			if exp-iat != c.life || c.svid.ExpiresAt != exp || c.svid.IssuedAt != iat || time.Now().Unix()-iat > 60 {
				t.Errorf("J-11: exp %d, iat %d; the reply says %d and %d", exp, iat, c.svid.ExpiresAt, c.svid.IssuedAt)
			}
			if (claims["jti"] != nil) != c.jti || claims["iss"] != "https://issuer.example" || claims["nbf"] != nil {
				t.Errorf("claims %v", claims)
			}
			if _, err := jwtsvid.ParseAndValidate(c.svid.Token, jwtBundle(t, keys), []string{"one"}); err != nil {
				t.Errorf("J-14: %v", err)
			}
			if _, err := jwtsvid.ParseAndValidate(c.svid.Token, jwtBundle(t, keys), []string{"three"}); err == nil {
				t.Error("J-9: it is valid for an audience that it does not name")
			}
		})
	}
	for what, c := range map[string]struct {
		call func() error
		code codes.Code
	}{
		"no audience": {func() error {
			_, err := a.svid.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: es[1].Id})
			return err
		}, codes.InvalidArgument},
		"an empty audience": {func() error {
			_, err := e.admin.svid.MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: sid("/w"), Audience: []string{""}})
			return err
		}, codes.InvalidArgument},
		"no entry": {func() error {
			_, err := a.svid.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: "x", Audience: []string{"a"}})
			return err
		}, codes.NotFound},
		"other facts": {func() error {
			_, err := a.node.SignJWTSVID(t.Context(), &nodev1.SignJWTSVIDRequest{EntryId: es[0].Id, Audience: []string{"a"}, Facts: facts(8)})
			return err
		}, codes.FailedPrecondition},
		"no facts": {func() error {
			_, err := a.node.SignJWTSVID(t.Context(), &nodev1.SignJWTSVIDRequest{EntryId: es[0].Id, Audience: []string{"a"}})
			return err
		}, codes.InvalidArgument},
		"an agent's ID": {func() error {
			_, err := e.admin.svid.MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: a.id, Audience: []string{"a"}})
			return err
		}, codes.InvalidArgument},
		"no ID": {func() error {
			_, err := e.admin.svid.MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Audience: []string{"a"}})
			return err
		}, codes.InvalidArgument},
	} {
		wantCode(t, what, c.call(), c.code)
	}
}

// TestWithoutEvidence: an agent that must send evidence gets no token without.
func TestWithoutEvidence(t *testing.T) {
	e := start(t, func(c *server.Config) { c.AllowWithoutEvidence = nil })
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7")})[0]
	_, err := a.svid.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: w.Id, Audience: []string{"a"}})
	wantCode(t, "NewJWTSVID", err, codes.FailedPrecondition)
	resp, err := a.svid.BatchNewWITSVID(t.Context(), &svidv1.BatchNewWITSVIDRequest{Params: []*svidv1.NewWITSVIDParams{{EntryId: w.Id, PublicKey: pkixOf(t, newKey(t)), SigningAlgorithm: "ES256"}}})
	if err != nil || codes.Code(resp.Results[0].Status.Code) != codes.FailedPrecondition || resp.Results[0].Svid != nil {
		t.Errorf("BatchNewWITSVID = %v, %v", resp, err)
	}
}

// TestWITSVIDs: what the server issues, by the standard's requirements (W-…).
func TestWITSVIDs(t *testing.T) {
	e := start(t, func(c *server.Config) { c.JWTIssuer = "https://issuer.example" })
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7"), X509SvidTtl: 600})[0]
	holder := newKey(t)
	public := pkixOf(t, holder)
	batch, err := a.svid.BatchNewWITSVID(t.Context(), &svidv1.BatchNewWITSVIDRequest{Params: []*svidv1.NewWITSVIDParams{
		{EntryId: w.Id, PublicKey: public, SigningAlgorithm: "ES256"}, {EntryId: w.Id, PublicKey: public, SigningAlgorithm: "RS256"}, {EntryId: "x", PublicKey: public, SigningAlgorithm: "ES256"},
		{PublicKey: public, SigningAlgorithm: "ES256"}, {EntryId: w.Id, SigningAlgorithm: "ES256"}, {EntryId: w.Id, PublicKey: []byte("x"), SigningAlgorithm: "ES256"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.OK, codes.InvalidArgument, codes.NotFound, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument} {
		if r := batch.Results[i]; r.Status == nil || codes.Code(r.Status.Code) != want || (r.Svid != nil) != (want == codes.OK) {
			t.Errorf("item %d: %v, want %s", i, r, want)
		}
	}
	proven, err := a.node.SignWITSVID(t.Context(), &nodev1.SignWITSVIDRequest{EntryId: w.Id, PublicKey: public, SigningAlgorithm: "ES256", Facts: facts(7)})
	if err != nil {
		t.Fatal(err)
	}
	minted, err := e.admin.svid.MintWITSVID(t.Context(), &svidv1.MintWITSVIDRequest{Id: sid("/w"), PublicKey: public, SigningAlgorithm: "ES256", Ttl: 600})
	if err != nil {
		t.Fatal(err)
	}
	b := e.ownBundle()
	wits, jwts := map[string][]byte{}, map[string][]byte{}
	for _, k := range b.WitAuthorities {
		wits[k.KeyId] = k.PublicKey
	}
	for _, k := range b.JwtAuthorities {
		jwts[k.KeyId] = k.PublicKey
		if wits[k.KeyId] != nil {
			t.Errorf("W-2, W-21: key ID %s is of a JWT and of a WIT authority", k.KeyId)
		}
	}
	for how, svid := range map[string]*types.WITSVID{"batch": batch.Results[0].Svid, "on evidence": proven.Svid, "minted": minted.Svid} {
		t.Run(how, func(t *testing.T) {
			header, claims := token(t, svid.Token) // W-1
			if got := names(header); !slices.Equal(got, []string{"alg", "kid", "typ"}) || header["typ"] != "wit+jwt" || header["alg"] != "ES256" || wits[header["kid"].(string)] == nil {
				t.Errorf("W-1, W-3, W-4, W-5: header %v", header)
			}
			if claims["sub"] != "spiffe://example.org/w" || svid.Id.Path != "/w" {
				t.Errorf("W-7: subject %v", claims["sub"])
			}
			raw, _ := json.Marshal(claims["cnf"])
			var cnf struct{ JWK jose.JSONWebKey }
			if err := json.Unmarshal(raw, &cnf); err != nil || cnf.JWK.Algorithm != "ES256" || !holder.PublicKey.Equal(cnf.JWK.Key) || !cnf.JWK.IsPublic() {
				t.Errorf("W-8, W-9: cnf %s, %v", raw, err)
			}
			exp, iat := int64(claims["exp"].(float64)), int64(claims["iat"].(float64))
			if exp-iat != 600 || svid.ExpiresAt != exp || svid.IssuedAt != iat {
				t.Errorf("W-12: exp %d, iat %d; the reply says %d and %d", exp, iat, svid.ExpiresAt, svid.IssuedAt)
			}
			if claims["iss"] != nil || claims["aud"] != nil {
				t.Errorf("W-15, W-16: claims %v", claims)
			}
			key, err := x509.ParsePKIXPublicKey(wits[header["kid"].(string)])
			if err != nil {
				t.Fatal(err)
			}
			jws, err := jose.ParseSigned(svid.Token, []jose.SignatureAlgorithm{jose.ES256})
			if err == nil {
				_, err = jws.Verify(key)
			}
			if err != nil {
				t.Errorf("the signature: %v", err)
			}
			for what, keys := range map[string]map[string][]byte{"the JWT authorities": jwts, "the WIT authorities taken for such": wits} {
				if _, err := jwtsvid.ParseAndValidate(svid.Token, jwtBundle(t, keys), []string{"a"}); err == nil {
					t.Errorf("W-22: a WIT-SVID passes for a JWT-SVID under %s", what)
				}
			}
		})
	}
	_, err = a.node.SignWITSVID(t.Context(), &nodev1.SignWITSVIDRequest{EntryId: w.Id, PublicKey: public, SigningAlgorithm: "ES256", Facts: facts(8)})
	wantCode(t, "other facts", err, codes.FailedPrecondition)
	_, err = e.admin.svid.MintWITSVID(t.Context(), &svidv1.MintWITSVIDRequest{Id: sid("/w"), PublicKey: public, SigningAlgorithm: "none"})
	wantCode(t, "no algorithm", err, codes.InvalidArgument)
	_, err = a.svid.BatchNewWITSVID(t.Context(), &svidv1.BatchNewWITSVIDRequest{})
	wantCode(t, "no parameters", err, codes.InvalidArgument)
}

var sanOID = asn1.ObjectIdentifier{2, 5, 29, 17}

// TestX509SVIDsToTheStandard: what the server issues and signs with, by the requirements (X-…, ID-…).
func TestX509SVIDsToTheStandard(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7"), DnsNames: []string{"w.example"}})[0]
	uri, _ := url.Parse("spiffe://example.org/minted")
	minted, err := e.admin.svid.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: newCSR(t, newKey(t), &x509.CertificateRequest{URIs: []*url.URL{uri}})})
	if err != nil {
		t.Fatal(err)
	}
	parse := func(der []byte) *x509.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	critical := func(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
		for _, x := range c.Extensions {
			if x.Id.Equal(oid) {
				return x.Critical
			}
		}
		return false
	}
	keyUsage, most := asn1.ObjectIdentifier{2, 5, 29, 15}, new(big.Int).Lsh(big.NewInt(1), 128)
	root := parse(e.ownBundle().X509Authorities[0].Asn1)
	if len(root.URIs) != 1 || root.URIs[0].String() != "spiffe://example.org" {
		t.Errorf("X-6, X-7, ID-17, ID-18: the authority is %v", root.URIs)
	}
	if !root.IsCA || !root.BasicConstraintsValid || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !critical(root, keyUsage) {
		t.Errorf("X-9, X-11, X-12: the authority's usage is %b, CA %t", root.KeyUsage, root.IsCA)
	}
	for id, leaf := range map[string]*x509.Certificate{
		"spiffe://example.org/w": parse(e.sign(a, w.Id, newKey(t)).CertChain[0]), "spiffe://example.org/minted": parse(minted.Svid.CertChain[0]), idText(a.id): a.leaf(),
	} {
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
			t.Errorf("X-1, X-4, ID-19: %s is of %v", id, leaf.URIs)
		}
		if len(leaf.Subject.ToRDNSequence()) == 0 && !critical(leaf, sanOID) {
			t.Errorf("X-5: %s has no subject, and its names are not critical", id)
		}
		if leaf.IsCA || !leaf.BasicConstraintsValid {
			t.Errorf("X-9: %s is a CA", id)
		}
		if !critical(leaf, keyUsage) || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
			t.Errorf("X-11, X-13, X-14: the usage of %s is %b", id, leaf.KeyUsage)
		}
		if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
			t.Errorf("X-15: the extended usage of %s is %v", id, leaf.ExtKeyUsage)
		}
		if leaf.SerialNumber.Sign() != 1 || leaf.SerialNumber.Cmp(most) >= 0 || len(leaf.SubjectKeyId) == 0 || string(leaf.AuthorityKeyId) != string(root.SubjectKeyId) {
			t.Errorf("%s: serial %v, key ids %x and %x", id, leaf.SerialNumber, leaf.SubjectKeyId, leaf.AuthorityKeyId)
		}
		if err := leaf.CheckSignatureFrom(root); err != nil {
			t.Errorf("X-16: %s: %v", id, err)
		}
	}
}
