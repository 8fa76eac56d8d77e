// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	td = spiffeid.RequireTrustDomainFromString("example.org")
	id = spiffeid.RequireFromPath(td, "/w")
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue makes a certificate; a nil parent signs itself.
func issue(t testing.TB, name string, ski []byte, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, SubjectKeyId: ski, IsCA: ski != nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestForms(t *testing.T) {
	key := newKey(t)
	a, b := issue(t, "a", []byte{1}, nil, key), issue(t, "b", []byte{2}, nil, key)
	all := spiffebundle.FromX509Authorities(td, []*x509.Certificate{a, b})
	for i := range 5 {
		if err := all.AddJWTAuthority(fmt.Sprint("jwt", i), key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	if err := all.AddWITAuthority("wit", key.Public()); err != nil {
		t.Fatal(err)
	}
	all.SetSequenceNumber(7)
	made, err := New(all, Tainted{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made.X509(), append(append([]byte{}, a.Raw...), b.Raw...)) || made.Sequence() != 7 || !made.HasWIT() || made.TrustDomain() != td || !made.SPIFFE().Equal(all) {
		t.Errorf("got %+v", made)
	}
	if got, err := jwtbundle.Parse(td, made.JWKS()); err != nil || !got.Equal(all.JWTBundle()) || !made.JWT().Equal(got) {
		t.Errorf("A-20: %s: %v", made.JWKS(), err)
	}
	if got, err := witbundle.Parse(td, made.WITKeys()); err != nil || len(got.WITAuthorities()) != 1 || bytes.Contains(made.WITKeys(), []byte("jwt")) {
		t.Errorf("A-21, A-26: %s: %v", made.WITKeys(), err)
	}
	again, err := New(all.Clone(), Tainted{})
	if err != nil || !bytes.Equal(again.JWKS(), made.JWKS()) || !again.Equal(made) {
		t.Error("the same keys are other bytes")
	}
	empty, err := New(spiffebundle.New(td), Tainted{})
	if err != nil || string(empty.JWKS()) != `{"keys":[]}` || empty.HasWIT() || empty.Equal(made) {
		t.Errorf("B-6: %s, %v", empty.JWKS(), err)
	}
}

func TestTaints(t *testing.T) {
	key, otherKey := newKey(t), newKey(t)
	bad, good, unnamed := issue(t, "bad", []byte{1}, nil, key), issue(t, "good", []byte{2}, nil, otherKey), issue(t, "unnamed", nil, nil, key)
	unnamed.IsCA, unnamed.KeyUsage = true, x509.KeyUsageCertSign
	middle := issue(t, "middle", []byte{3}, bad, key)
	b, err := New(spiffebundle.New(td), Tainted{X509: []*x509.Certificate{bad}, JWT: []string{"j"}, WIT: []string{"w"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		want  bool
	}{
		{"by the tainted", []*x509.Certificate{issue(t, "leaf", nil, bad, key)}, true},
		{"by another", []*x509.Certificate{issue(t, "leaf", nil, good, otherKey)}, false},
		{"by one below the tainted", []*x509.Certificate{issue(t, "leaf", nil, middle, key), middle}, true},
		{"unnamed, by its key", []*x509.Certificate{issue(t, "bad", nil, nil, key)}, true},
		{"unnamed, by another key", []*x509.Certificate{issue(t, "bad", nil, nil, otherKey)}, false},
		{"nothing", nil, false},
	} {
		if got := b.TaintsChain(c.chain); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if !b.TaintsKey("j") || !b.TaintsKey("w") || b.TaintsKey("x") {
		t.Error("key ids")
	}
	clean, err := New(spiffebundle.New(td), Tainted{})
	if err != nil || clean.Equal(b) || b.Equal(clean) {
		t.Error("taints do not count in comparison")
	}
}

func token(t testing.TB, kid string, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: newKey(t), KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestReadToken(t *testing.T) {
	good := map[string]any{"sub": id.String(), "iat": 100, "exp": 200}
	if got, err := ReadToken(token(t, "k", good), id); err != nil || got.KeyID != "k" || got.IssuedAt.Unix() != 100 || got.ExpiresAt.Unix() != 200 {
		t.Errorf("got %+v, %v", got, err)
	}
	for text, bad := range map[string]string{
		"malformed":         "x.y.z",
		`of "spiffe`:        token(t, "k", map[string]any{"sub": id.String() + "x", "iat": 100, "exp": 200}),
		"without a key id":  token(t, "", good),
		"from when to when": token(t, "k", map[string]any{"sub": id.String(), "iat": 200, "exp": 200}),
		"when it is valid":  token(t, "k", map[string]any{"sub": id.String(), "exp": 200}),
	} {
		if _, err := ReadToken(bad, id); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzReadToken(f *testing.F) {
	f.Add(token(f, "k", map[string]any{"sub": id.String(), "iat": 100, "exp": 200}))
	f.Add("a.b.c")
	f.Add(`{"payload":"e30"}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ReadToken(text, id)
		if err != nil {
			return
		}
		if got.KeyID == "" || !got.IssuedAt.Before(got.ExpiresAt) || strings.Count(text, ".") != 2 {
			t.Errorf("%q: %+v", text, got)
		}
		var header struct{ Alg jose.SignatureAlgorithm }
		if parsed, err := jose.ParseSignedCompact(text, Algorithms); err != nil {
			t.Error(err)
		} else if err := json.Unmarshal([]byte(fmt.Sprintf(`{"alg":%q}`, parsed.Signatures[0].Header.Algorithm)), &header); err != nil || header.Alg == "none" {
			t.Errorf("algorithm %v, %v", header.Alg, err)
		}
	})
}
