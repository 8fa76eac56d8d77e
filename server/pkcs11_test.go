// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/keys/softhsmtest"
)

func hsmConfig(t *testing.T, hsm *softhsmtest.HSM) server.KeyManagerConfig {
	return server.KeyManagerConfig{Type: "pkcs11", Module: hsm.Module, TokenLabel: hsm.Label, PINPath: hsm.PINPath, HelperPath: softhsmtest.Helper(t)}
}

// issue has an X.509-SVID and a JWT-SVID signed and checks both.
func (e *env) issue() {
	e.t.Helper()
	ctx := e.t.Context()
	b := e.ownBundle()
	minted, err := e.admin.svid.MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: newCSR(e.t, newKey(e.t), &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/w"}}})})
	if err != nil {
		e.t.Fatal(err)
	}
	if id, _, err := x509svid.ParseAndVerify(minted.Svid.CertChain, bundleOf(e.t, b)); err != nil || id.Path() != "/w" {
		e.t.Errorf("X.509-SVID of %s: %v", id, err)
	}
	jwt, err := e.admin.svid.MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: sid("/w"), Audience: []string{"a"}})
	if err != nil {
		e.t.Fatal(err)
	}
	keys := map[string][]byte{}
	for _, k := range b.JwtAuthorities {
		keys[k.KeyId] = k.PublicKey
	}
	if _, err := jwtsvid.ParseAndValidate(jwt.Svid.Token, jwtBundle(e.t, keys), []string{"a"}); err != nil {
		e.t.Errorf("JWT-SVID: %v", err)
	}
}

// keysIn are the names of this server's keys in the HSM.
func (e *env) keysIn(hsm *softhsmtest.HSM) []string {
	e.t.Helper()
	id, err := os.ReadFile(filepath.Join(e.conf.DataDir, "ca", "server-id"))
	if err != nil {
		e.t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`label: +assay/`+strings.TrimSpace(string(id))+`/(\S+)`).FindAllStringSubmatch(hsm.Labels(), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names) // of both halves
}

// TestHSM: a whole server whose keys are in an HSM: it issues, rotates and forgets; a module that crashes while it
// signs costs nothing; a restart keeps the authorities and deletes what nobody knows of.
func TestHSM(t *testing.T) {
	for _, kind := range []string{"ec-p256", "rsa-2048"} {
		t.Run(kind, func(t *testing.T) {
			hsm := softhsmtest.New(t)
			conf := hsmConfig(t, hsm)
			e := start(t, func(c *server.Config) { c.KeyManager, c.CAKeyType, c.JWTKeyType = &conf, kind, kind })
			e.issue()
			first := e.keysIn(hsm)
			if len(first) != 3 {
				t.Errorf("the HSM holds %q, want a key of each kind of authority", first)
			}
			e.newAgent()
			hsm.Fail("crash")
			e.issue()
			if !hsm.Failed() {
				t.Error("nothing was signed in the HSM")
			}
			replaceAuthorities(t, e)
			e.bundle = bundleOf(t, e.ownBundle())
			e.issue()
			second := e.keysIn(hsm)
			if len(second) != 3 || slices.ContainsFunc(second, func(k string) bool { return slices.Contains(first, k) }) {
				t.Errorf("after all were revoked the HSM holds %q; it was %q", second, first)
			}
			before := e.ownBundle()
			e.stop()
			e = run(t, e.conf)
			if after := e.ownBundle(); !proto.Equal(after, before) {
				t.Errorf("the bundle after a restart:\n%v\nbefore:\n%v", after, before)
			}
			e.issue()
			if got := e.keysIn(hsm); !slices.Equal(got, second) {
				t.Errorf("the HSM holds %q after a restart, not %q", got, second)
			}
		})
	}
}

// replaceAuthorities has another one sign in place of each, and revokes the former.
func replaceAuthorities(t *testing.T, e *env) {
	t.Helper()
	for kind, k := range localKinds(t, e.admin.local) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		former, _, _, err := k.state()
		if err != nil {
			t.Fatal(kind, err)
		}
		next, err := k.prepare()
		if err != nil {
			t.Fatal(kind, err)
		}
		for _, step := range []func() error{
			func() error { _, err := k.activate(ctx, next.AuthorityId); return err },
			func() error { _, err := k.taint(ctx, former.AuthorityId); return err },
			func() error { _, err := k.revoke(ctx, former.AuthorityId); return err },
		} {
			if err := step(); err != nil {
				t.Fatal(kind, err)
			}
		}
	}
}

// TestTwoServersOneHSM: neither touches the other's keys, though each deletes what it does not know.
func TestTwoServersOneHSM(t *testing.T) {
	hsm := softhsmtest.New(t)
	conf := hsmConfig(t, hsm)
	with := func(c *server.Config) { manager := conf; c.KeyManager = &manager }
	one, two := start(t, with), start(t, with)
	have := [][]string{one.keysIn(hsm), two.keysIn(hsm)}
	one.stop()
	one = run(t, one.conf)
	one.issue()
	two.issue()
	if now := [][]string{one.keysIn(hsm), two.keysIn(hsm)}; fmt.Sprint(now) != fmt.Sprint(have) || len(now[1]) != 3 {
		t.Errorf("keys %q became %q", have, now)
	}
}

// TestHSMIsAway: a server does not start without its HSM, and says what to do; it makes no other authorities.
func TestHSMIsAway(t *testing.T) {
	hsm := softhsmtest.New(t)
	conf := hsmConfig(t, hsm)
	e := start(t, func(c *server.Config) { c.KeyManager = &conf })
	e.stop()
	for want, change := range map[string]func(*server.KeyManagerConfig){
		"/nowhere.so":       func(c *server.KeyManagerConfig) { c.Module = "/nowhere.so" },
		"0 tokens":          func(c *server.KeyManagerConfig) { c.TokenLabel = "another" },
		"make build-pkcs11": func(c *server.KeyManagerConfig) { c.HelperPath = "/nowhere" },
	} {
		broken, changed := e.conf, conf
		change(&changed)
		broken.KeyManager = &changed
		s, err := server.New(broken, "test", e.logs)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "key_manager") {
			t.Errorf("Run = %v, want %q", err, want)
		}
	}
	run(t, e.conf).issue()
}

// TestKeysMoveToAnHSM: a change of the key manager is one of authorities, and those of before stay valid.
func TestKeysMoveToAnHSM(t *testing.T) {
	hsm := softhsmtest.New(t)
	conf := hsmConfig(t, hsm)
	e := start(t, nil)
	before := e.roots()
	e.stop()
	changed := e.conf
	changed.KeyManager = &conf
	e = run(t, changed)
	e.issue()
	if after := e.roots(); len(after) != 2 || !slices.Contains(after, before[0]) {
		t.Errorf("%d roots, want the one of before and another", len(after))
	}
}
