// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// call is the context of one good request.
func call(p *probe) context.Context {
	ctx, cancel := context.WithTimeout(header(context.Background()), patience)
	p.Cleanup(cancel)
	return ctx
}

// first returns the first message of a stream.
func first[M any](p *probe, st grpc.ServerStreamingClient[M], err error) *M {
	p.Helper()
	p.must("open the stream", err)
	m, err := st.Recv()
	p.must("first message", err)
	return m
}

func x509Response(p *probe) *pb.X509SVIDResponse {
	p.Helper()
	st, err := at.api.FetchX509SVID(call(p), &pb.X509SVIDRequest{})
	return first(p, st, err)
}

// An svid is one X509-SVID as it was issued.
type svid struct {
	id     string
	chain  []*x509.Certificate
	key    crypto.Signer
	bundle []*x509.Certificate
}

func (s *svid) leaf() *x509.Certificate { return s.chain[0] }

// svids of the Workload API, and one that the server minted, if there is one.
func svids(p *probe) (list []*svid) {
	p.Helper()
	for _, m := range x509Response(p).Svids {
		list = append(list, readSVID(p, m))
	}
	if at.server != nil {
		list = append(list, mintX509(p))
	}
	return list
}

func readSVID(p *probe, m *pb.X509SVID) *svid {
	p.Helper()
	chain, err := x509.ParseCertificates(m.X509Svid)
	p.must("the chain of "+m.SpiffeId, err)
	if len(chain) == 0 {
		p.Fatalf("%s has no certificate", m.SpiffeId)
	}
	key, err := x509.ParsePKCS8PrivateKey(m.X509SvidKey)
	p.must("the key of "+m.SpiffeId, err)
	signer, ok := key.(crypto.Signer)
	if !ok {
		p.Fatalf("the key of %s is a %T", m.SpiffeId, key)
	}
	bundle, err := x509.ParseCertificates(m.Bundle)
	p.must("the bundle of "+m.SpiffeId, err)
	return &svid{id: m.SpiffeId, chain: chain, key: signer, bundle: bundle}
}

// samePublic compares public keys.
func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// A token is a JWS whose parts are read without any library that would mend them.
type token struct {
	raw            string
	header, claims map[string]any
}

func readToken(p *probe, raw string) token {
	p.Helper()
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		p.Fatalf("the token has %d parts, not the three of a compact JWS", len(parts))
	}
	t := token{raw: raw}
	for i, into := range []*map[string]any{&t.header, &t.claims} {
		text, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		p.must("base64url of the token", err)
		p.must("JSON of the token", json.Unmarshal(text, into))
	}
	return t
}

func fetchJWT(p *probe, audience ...string) []token {
	p.Helper()
	r, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: audience})
	p.must("FetchJWTSVID", err)
	return jwtTokens(p, r)
}

func jwtTokens(p *probe, r *pb.JWTSVIDResponse) (list []token) {
	p.Helper()
	for _, s := range r.Svids {
		t := readToken(p, s.Svid)
		if t.claims["sub"] != s.SpiffeId {
			p.Errorf("the token for %s is for %v", s.SpiffeId, t.claims["sub"])
		}
		list = append(list, t)
	}
	if len(list) == 0 {
		p.Fatalf("no token")
	}
	return list
}

// tokens are JWT-SVIDs of the Workload API, and one that the server minted, if there is one.
func tokens(p *probe) []token {
	p.Helper()
	list := fetchJWT(p, "db")
	if at.server != nil {
		list = append(list, mintJWT(p))
	}
	return list
}

func fetchWIT(p *probe, id string) *pb.WITSVIDResponse {
	p.Helper()
	st, err := at.api.FetchWITSVID(call(p), &pb.WITSVIDRequest{SpiffeId: id})
	return first(p, st, err)
}

func wits(p *probe) (list []token) {
	p.Helper()
	for _, s := range fetchWIT(p, "").Svids {
		list = append(list, readToken(p, s.WitSvid))
	}
	if len(list) == 0 {
		p.Fatalf("no WIT-SVID")
	}
	return list
}

// jwtBundle returns the local trust domain's JWK Set as it was sent.
func jwtBundle(p *probe) []byte {
	p.Helper()
	st, err := at.api.FetchJWTBundles(call(p), &pb.JWTBundlesRequest{})
	m := first(p, st, err)
	set, ok := m.Bundles["spiffe://"+at.td]
	if !ok {
		p.Fatalf("no bundle of spiffe://%s among %v", at.td, keys(m.Bundles))
	}
	return set
}

func witBundle(p *probe) []byte {
	p.Helper()
	st, err := at.api.FetchWITBundles(call(p), &pb.WITBundlesRequest{})
	m := first(p, st, err)
	set, ok := m.Bundles["spiffe://"+at.td]
	if !ok {
		p.Fatalf("no bundle of spiffe://%s among %v", at.td, keys(m.Bundles))
	}
	return []byte(set)
}

func keys[V any](m map[string]V) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// rawJWKS reads a JWK Set without interpretation.
func rawJWKS(p *probe, text []byte) (doc map[string]any, members []jwk) {
	p.Helper()
	p.must("JSON of the JWK Set", json.Unmarshal(text, &doc))
	list, ok := doc["keys"].([]any)
	if !ok {
		p.Fatalf("the JWK Set has no array keys: %s", text)
	}
	for _, k := range list {
		m, ok := k.(map[string]any)
		if !ok {
			p.Fatalf("a key is no object: %v", k)
		}
		members = append(members, m)
	}
	return doc, members
}

// algorithms of JWT- and WIT-SVIDs.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// verified checks a token's signature by the key of a JWK Set with its kid.
func verified(p *probe, t token, set []byte) {
	p.Helper()
	jws, err := jose.ParseSignedCompact(t.raw, algorithms)
	p.must("parse the token", err)
	var known jose.JSONWebKeySet
	p.must("parse the JWK Set", json.Unmarshal(set, &known))
	kid, _ := t.header["kid"].(string)
	for _, k := range known.Key(kid) {
		if _, err := jws.Verify(k); err == nil {
			return
		}
	}
	p.Errorf("no key %q of the bundle verifies the token", kid)
}

// validate asks the agent about a token for "db".
func validate(p *probe, raw string) (*pb.ValidateJWTSVIDResponse, error) {
	p.Helper()
	return at.api.ValidateJWTSVID(call(p), &pb.ValidateJWTSVIDRequest{Audience: "db", Svid: raw})
}

// valid wants the agent to accept a token.
func valid(p *probe, what, raw string) *pb.ValidateJWTSVIDResponse {
	p.Helper()
	r, err := validate(p, raw)
	if err != nil {
		p.Fatalf("%s is refused: %v", what, err)
	}
	return r
}

// invalid wants the agent to refuse a token for what it is.
func invalid(p *probe, what, raw string) {
	p.Helper()
	r, err := validate(p, raw)
	if err == nil {
		p.Errorf("%s is accepted as %s", what, r.SpiffeId)
	} else if c := status.Code(err); c != codes.InvalidArgument {
		p.Errorf("%s: %v, want InvalidArgument", what, err)
	}
}

// code wants a status.
func code(p *probe, what string, err error, want ...codes.Code) {
	p.Helper()
	if !slices.Contains(want, status.Code(err)) {
		p.Errorf("%s: %v, want %v", what, err, want)
	}
}

func eventually(p *probe, what string, ok func() bool) {
	p.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// cleanupContext serves what is undone after a probe.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}
