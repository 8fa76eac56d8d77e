// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/cmd/dev"
)

func (m *machine) client(t *testing.T) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What go-spiffe's sources give a workload: one token for each identity, for just this audience, by a
// key of the bundle, and the same one again as long as it is young (A-12, A-14, A-18, A-19, A-20, A-27, J-*).
func TestJWT(t *testing.T) {
	c := shared.client(t)
	eventually(t, "A-15: no bundles without an identity", func() bool { // an entry of the test before may be on its way out
		_, err := c.FetchJWTBundles(t.Context())
		return status.Code(err) == codes.PermissionDenied
	})
	if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("A-15: without an identity: %v", err)
	}
	shared.create(t, "/first", "--selector", me(t), "--hint", "same")
	shared.create(t, "/second", "--selector", me(t), "--hint", "same")

	source, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClient(c))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	list, err := source.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}})
	if err != nil || len(list) != 2 || list[0].ID.Path() != "/first" || list[1].ID.Path() != "/second" {
		t.Fatalf("A-19: %v, %v", list, err)
	}
	if list[0].Hint != "same" || list[1].Hint != "" {
		t.Errorf("A-14: hints %q and %q", list[0].Hint, list[1].Hint)
	}
	for _, v := range list {
		token := v.Marshal()
		got, err := jwtsvid.ParseAndValidate(token, source, []string{"cache"})
		if err != nil || !slices.Equal(got.Audience, []string{"db", "cache"}) {
			t.Errorf("A-18, J-*: %v, %v", got, err)
		}
		if again, err := source.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}, Subject: v.ID}); err != nil || len(again) != 1 || again[0].Marshal() != token {
			t.Errorf("A-19: asked again for %s: %v, %v", v.ID, again, err)
		}
		parsed, err := c.ValidateJWTSVID(t.Context(), token, "db")
		if err != nil || parsed.ID != v.ID {
			t.Errorf("A-22: %v, %v", parsed, err)
		}
		if _, err := c.ValidateJWTSVID(t.Context(), token, "other"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("J-9: for another audience: %v", err)
		}
	}
	other := spiffeid.RequireFromPath(list[0].ID.TrustDomain(), "/third")
	if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db", Subject: other}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("A-19: for an identity of somebody else: %v", err)
	}
	if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("A-10: without an audience: %v", err)
	}
	eventually(t, "the tokens to be in the history", func() bool {
		data, err := os.ReadFile(filepath.Join(shared.Dir, "data/agent/deliveries.log"))
		return err == nil && strings.Contains(string(data), `"kind":"jwt","spiffe_id":"spiffe://example.org/second"`) && strings.Contains(string(data), `"audience":["db","cache"]`)
	})
}

// Another process gets a token of its own, signed on its own evidence.
func TestTokensAreNotShared(t *testing.T) {
	shared.create(t, "/tool", "--binary", bin("assay"))
	shared.create(t, "/me", "--selector", me(t))
	c := shared.client(t)
	signed := func() int { return shared.logs.count("JWT-SVID signed") }
	before := signed()
	for range 3 {
		if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := signed() - before; n != 1 {
		t.Errorf("signed %d times for one process and audience", n)
	}
}

// A workload gets a WIT-SVID for a key that the agent made (A-25, A-26, W-*).
func TestWIT(t *testing.T) {
	shared.create(t, "/me", "--selector", me(t))
	c := shared.client(t)
	bundles, err := c.FetchWITBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	svid, err := c.FetchWITSVID(t.Context(), "spiffe://example.org/me")
	if err != nil {
		t.Fatal(err)
	}
	validated, err := witsvid.ParseAndValidate(svid.Marshal(), bundles)
	if err != nil {
		t.Fatal(err)
	}
	private, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(validated.PublicKey) {
		t.Errorf("A-25: the key is %T and not that of cnf", svid.PrivateKey)
	}
	if _, err := c.FetchWITSVID(t.Context(), "spiffe://example.org/other"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("A-15: %v", err)
	}
	if _, err := c.ValidateJWTSVID(t.Context(), svid.Marshal(), "x"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("W-22: a WIT-SVID validates as a JWT-SVID: %v", err)
	}
}

// far is another trust domain, played by the test.
type far struct {
	td  spiffeid.TrustDomain
	key *ecdsa.PrivateKey
}

func newFar(t *testing.T, m *machine, name string) *far {
	t.Helper()
	f := &far{td: spiffeid.RequireTrustDomainFromString(name)}
	var err error
	if f.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{f.td.ID().URL()}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, f.key.Public(), f.key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(f.td)
	b.AddX509Authority(ca)
	if err := b.AddJWTAuthority("far", f.key.Public()); err != nil {
		t.Fatal(err)
	}
	b.SetRefreshHint(time.Hour)
	b.SetSequenceNumber(1)
	doc, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bundle.json")
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	m.must(t, nil, "bundle", "set", "--id", name, "--format", "spiffe", "--path", path)
	return f
}

// token signs claims, by default those of a good JWT-SVID for the audience "db".
func (f *far) token(t *testing.T, options *jose.SignerOptions, alg jose.SignatureAlgorithm, key any, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"sub": f.td.IDString() + "/w", "aud": "db", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "group": "x", "secret": "y"}
	for name, v := range change {
		if claims[name] = v; v == nil {
			delete(claims, name)
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Who federates with another trust domain gets its bundles, at once when they change, and no more of its tokens'
// claims than the operator allows (A-11, A-16, A-22 to A-24, J-4, J-12, J-15).
func TestFederation(t *testing.T) {
	m := start(t, dev.Options{Agent: `allowed_foreign_jwt_claims = ["group"]`})
	f := newFar(t, m, "far.test")
	newFar(t, m, "unrelated.test")
	e := m.create(t, "/me", "--selector", me(t), "--federates-with", "far.test")
	w, c := m.watch(t), m.client(t)
	if x := w.next(t); x.Bundles.Len() != 2 || !x.Bundles.Has(f.td) {
		t.Fatalf("X.509 bundles: %v", x.Bundles.Bundles())
	}
	if set, err := c.FetchX509Bundles(t.Context()); err != nil || set.Len() != 2 || !set.Has(f.td) {
		t.Errorf("A-16: %v, %v", set, err)
	}
	if set, err := c.FetchJWTBundles(t.Context()); err != nil || set.Len() != 2 || !set.Has(f.td) {
		t.Errorf("A-20: %v, %v", set, err)
	}
	kid := func() *jose.SignerOptions { return (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "far") }
	good := f.token(t, kid(), jose.ES256, f.key, nil)
	got, err := c.ValidateJWTSVID(t.Context(), good, "db")
	if err != nil || got.ID.String() != "spiffe://far.test/w" {
		t.Fatalf("A-24: %v, %v", got, err)
	}
	// go-spiffe takes the claims from the token; what the agent says is in the response.
	claims := m.validate(t, good)
	if names := slices.Sorted(maps.Keys(claims)); fmt.Sprint(names) != "[aud exp group sub]" {
		t.Errorf("A-23: claims %v", names)
	}
	if fmt.Sprint(claims["aud"]) != "[db]" {
		t.Errorf("A-23: aud is %v", claims["aud"])
	}
	own, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"})
	if err != nil {
		t.Fatal(err)
	}
	if claims := m.validate(t, own.Marshal()); claims["iat"] == nil || claims["sub"] != "spiffe://example.org/me" {
		t.Errorf("A-23: claims of our own token: %v", claims)
	}
	for name, token := range map[string]string{
		"J-12 without exp":       f.token(t, kid(), jose.ES256, f.key, map[string]any{"exp": nil}),
		"J-12 expired":           f.token(t, kid(), jose.ES256, f.key, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}),
		"J-9 without aud":        f.token(t, kid(), jose.ES256, f.key, map[string]any{"aud": nil}),
		"J-7 without sub":        f.token(t, kid(), jose.ES256, f.key, map[string]any{"sub": nil}),
		"A-24 of another domain": f.token(t, kid(), jose.ES256, f.key, map[string]any{"sub": "spiffe://example.org/me"}),
		"A-24 of an unrelated":   f.token(t, kid(), jose.ES256, f.key, map[string]any{"sub": "spiffe://unrelated.test/w"}),
		"J-4 HS256":              f.token(t, kid(), jose.HS256, make([]byte, 32), nil),
		"J-5 without kid":        f.token(t, (&jose.SignerOptions{}).WithType("JWT"), jose.ES256, f.key, nil),
		"J-6 another typ":        f.token(t, (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", "far"), jose.ES256, f.key, nil),
		"J-1 not compact":        `{"payload":"e30","signatures":[]}`,
		"J-4 none":               "eyJhbGciOiJub25lIiwia2lkIjoiZmFyIn0." + strings.Split(good, ".")[1] + ".",
		"changed":                good[:len(good)-4] + "AAAA",
		"nothing":                "",
	} {
		if _, err := c.ValidateJWTSVID(t.Context(), token, "db"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.must(t, nil, "bundle", "delete", "--id", "far.test", "--mode", "dissociate")
	if x := w.next(t); x.Bundles.Len() != 1 {
		t.Errorf("A-9: after its deletion: %v", x.Bundles.Bundles())
	}
	if _, err := c.ValidateJWTSVID(t.Context(), good, "db"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("its token after that: %v", err)
	}
	m.must(t, nil, "entry", "delete", e.ID)
	eventually(t, "A-15: the entry to be gone", func() bool {
		_, err := c.ValidateJWTSVID(t.Context(), good, "db")
		return status.Code(err) == codes.PermissionDenied
	})
}

// validate returns the claims that the agent tells of a token for "db".
func (m *machine) validate(t *testing.T, token string) map[string]any {
	t.Helper()
	conn, err := dev.Dial(strings.TrimPrefix(m.WorkloadSocket, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	r, err := pb.NewSpiffeWorkloadAPIClient(conn).ValidateJWTSVID(ctx, &pb.ValidateJWTSVIDRequest{Audience: "db", Svid: token})
	if err != nil {
		t.Fatal(err)
	}
	return r.Claims.AsMap()
}

// E-6, E-18: health and reflection are on the socket and need no header.
func TestHealthAndReflection(t *testing.T) {
	conn, err := dev.Dial(strings.TrimPrefix(shared.WorkloadSocket, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	health := grpc_health_v1.NewHealthClient(conn)
	if r, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	if _, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v", err)
	}
	st, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil || !strings.Contains(r.String(), `"SpiffeWorkloadAPI"`) {
		t.Errorf("reflection: %v, %v", r, err)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
