// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	gospiffe "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/storetest"
)

// domain publishes its bundle and has a registry of its own.
type domain struct {
	*env
	td  spiffeid.TrustDomain
	ca  *authority
	pub *publisher
	id  spiffeid.ID // of its endpoint
	url string
}

func newDomain(t *testing.T, td spiffeid.TrustDomain, web *authority) *domain {
	t.Helper()
	d := &domain{td: td, ca: newAuthority(t, td.IDString()), id: spiffeid.RequireFromPath(td, "/spire/server")}
	d.pub = &publisher{bundle: newBundle(t, td, d.ca)}
	cert := d.ca.leaf(d.id.String())
	if web != nil {
		cert = web.leaf("")
	}
	d.url = serve(t, cert, federation.Endpoint{Own: d.pub.own})
	d.env = open(t, td, func(c *federation.Config) {
		c.Own = d.pub.own
		if web != nil {
			c.WebRoots = web.pool()
		}
	})
	return d
}

func (d *domain) relationship(p federation.Profile) federation.Relationship {
	rel := federation.Relationship{TrustDomain: d.td, URL: d.url, Profile: p}
	if p == federation.SPIFFE {
		rel.EndpointID = d.id
	}
	return rel
}

// knows: the sequence of the other's bundle and its authorities are the present ones.
func (d *domain) knows(o *domain) bool {
	got := d.Bundle(o.td)
	want, _ := o.pub.own()
	return got != nil && got.Sequence == want.Sequence && got.Equal(want)
}

// TestFederate: two trust domains know each other's bundle, in both profiles, and follow changes.
func TestFederate(t *testing.T) {
	for _, profile := range []federation.Profile{federation.Web, federation.SPIFFE} {
		t.Run(string(profile), func(t *testing.T) {
			var web *authority
			if profile == federation.Web {
				web = newAuthority(t, "")
			}
			a, b := newDomain(t, here, web), newDomain(t, there, web)
			for _, pair := range [][2]*domain{{a, b}, {b, a}} {
				me, other := pair[0], pair[1]
				me.run(t)
				n := federation.NewRelationship{Relationship: other.relationship(profile)}
				if profile == federation.SPIFFE { // F-19, F-23: begins with the bundle that the operator gives
					n.Bundle = newBundle(t, other.td, other.ca)
					n.Bundle.Sequence = 0
				}
				one(t, me.CreateRelationships(t.Context(), []federation.NewRelationship{n}))
				waitFor(t, "the other's bundle", func() bool { return me.knows(other) })
			}

			// The other's authority is replaced, step by step as a real one. F-23: the newest fetched
			// bundle vouches for the endpoint.
			next := newAuthority(t, there.IDString())
			b.pub.set(func(b *federation.Bundle) { b.X509, b.Sequence = append(b.X509, next.cert), 8 })
			if a.knows(b) {
				t.Fatal("known before it was fetched")
			}
			a.pass(t, 6*time.Minute)
			waitFor(t, "the bundle with the next authority", func() bool {
				got := a.Bundle(there)
				return got.Sequence == 8 && len(got.X509) == 2
			})
			if profile == federation.SPIFFE {
				b.url = serve(t, next.leaf(b.id.String()), federation.Endpoint{Own: b.pub.own})
				rel := b.relationship(profile)
				one(t, a.UpdateRelationships(t.Context(), []federation.RelationshipUpdate{{TrustDomain: there, Change: func(r *federation.Relationship) error { *r = rel; return nil }}}))
				b.pub.set(func(b *federation.Bundle) { b.X509, b.Sequence = []*x509.Certificate{next.cert}, 9 })
				if err := a.RefreshBundle(t.Context(), there); err != nil {
					t.Fatal(err)
				}
				if !a.knows(b) {
					t.Errorf("after the refresh it is %+v", a.Bundle(there))
				}
			}
		})
	}
}

// pass lets time pass and wakes the poller, whose timer runs by the real clock.
func (e *env) pass(t *testing.T, d time.Duration) {
	t.Helper()
	e.clock.add(d)
	nudge := spiffeid.RequireTrustDomainFromString("nudge.test")
	one(t, e.SetBundles(t.Context(), []*federation.Bundle{newBundle(t, nudge, newAuthority(t, nudge.IDString()))}))
}

// TestGoSpiffe: go-spiffe's client reads our endpoint, and ours reads go-spiffe's.
func TestGoSpiffe(t *testing.T) {
	web := newAuthority(t, "")
	a, b := newDomain(t, here, nil), newDomain(t, there, web)
	trusted := spiffebundle.FromX509Authorities(here, []*x509.Certificate{a.ca.cert})
	for _, c := range []struct {
		d   *domain
		opt gospiffe.FetchOption
	}{{a, gospiffe.WithSPIFFEAuth(trusted, a.id)}, {b, gospiffe.WithWebPKIRoots(web.pool())}} {
		got, err := gospiffe.FetchBundle(t.Context(), c.d.td, c.d.url, c.opt)
		if err != nil {
			t.Fatal(err)
		}
		seq, _ := got.SequenceNumber()
		hint, _ := got.RefreshHint()
		if seq != 7 || hint != 5*time.Minute || len(got.X509Authorities()) != 1 || len(got.JWTAuthorities()) != 1 || len(got.WITAuthorities()) != 1 {
			t.Errorf("go-spiffe has %v", got)
		}
	}

	source := spiffebundle.FromX509Authorities(there, []*x509.Certificate{b.ca.cert})
	source.SetSequenceNumber(1 << 63)
	if err := source.AddJWTAuthority("k", newKey(t).Public()); err != nil {
		t.Fatal(err)
	}
	h, err := gospiffe.NewHandler(there, source)
	if err != nil {
		t.Fatal(err)
	}
	url := serve(t, b.ca.leaf(b.id.String()), h)
	first := newBundle(t, there, b.ca)
	first.Sequence = 0
	rel := federation.Relationship{TrustDomain: there, URL: url, Profile: federation.SPIFFE, EndpointID: b.id}
	one(t, a.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: rel, Bundle: first}}))
	if err := a.RefreshBundle(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	if got := a.Bundle(there); got.Sequence != 1<<63 || len(got.JWT) != 1 || got.JWT[0].ID != "k" {
		t.Errorf("we have %+v", got)
	}
}

// TestRefused: what an endpoint may not do, and that the known bundle stays.
func TestRefused(t *testing.T) {
	web, other := newAuthority(t, ""), newAuthority(t, "")
	ca := newAuthority(t, there.IDString())
	id := spiffeid.RequireFromPath(there, "/spire/server")
	doc := func(change func(*federation.Bundle)) []byte {
		b := newBundle(t, there, ca)
		change(b)
		text, err := b.Document()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	same := func(*federation.Bundle) {}
	answer := func(text []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Write(text) }
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, to, http.StatusFound) }
	}
	plain := "http://127.0.0.1:1/"
	svid := ca.leaf(id.String())
	elsewhere := serve(t, web.leaf(""), answer(doc(same)))
	e := open(t, here, func(c *federation.Config) { c.WebRoots = web.pool() })
	stranger := serve(t, other.leaf(""), answer(doc(same)))
	for name, c := range map[string]struct {
		cert *tls.Certificate
		h    http.Handler
		rel  federation.Relationship
		why  string // "" is accepted
	}{
		"good":                    {web.leaf(""), answer(doc(same)), federation.Relationship{Profile: federation.Web}, ""},
		"F-16 stranger":           {other.leaf(""), answer(doc(same)), federation.Relationship{Profile: federation.Web}, "certificate"},
		"F-16 an SVID":            {svid, answer(doc(same)), federation.Relationship{Profile: federation.Web}, "certificate"},
		"F-22 good":               {svid, answer(doc(same)), federation.Relationship{Profile: federation.SPIFFE, EndpointID: id}, ""},
		"F-22 other id":           {ca.leaf(there.IDString() + "/w"), answer(doc(same)), federation.Relationship{Profile: federation.SPIFFE, EndpointID: id}, "unexpected ID"},
		"F-22 web":                {web.leaf(""), answer(doc(same)), federation.Relationship{Profile: federation.SPIFFE, EndpointID: id}, "URI"},
		"F-18 F-20 unknown":       {svid, answer(doc(same)), federation.Relationship{Profile: federation.SPIFFE, EndpointID: spiffeid.RequireFromString("spiffe://other.test/x")}, "bundle set"},
		"F-17 redirect":           {web.leaf(""), redirect(elsewhere), federation.Relationship{Profile: federation.Web}, ""},
		"F-17 to a stranger":      {web.leaf(""), redirect(stranger), federation.Relationship{Profile: federation.Web}, "certificate"},
		"F-17 to plain http":      {web.leaf(""), redirect(plain), federation.Relationship{Profile: federation.Web}, "does not begin with https"},
		"F-17 with a password":    {web.leaf(""), redirect(strings.Replace(elsewhere, "https://", "https://me:pw@", 1)), federation.Relationship{Profile: federation.Web}, "user name"},
		"F-17 in a circle":        {web.leaf(""), redirect("/"), federation.Relationship{Profile: federation.Web}, "redirects"},
		"F-22 redirect":           {svid, redirect(elsewhere), federation.Relationship{Profile: federation.SPIFFE, EndpointID: id}, "URI"},
		"status":                  {web.leaf(""), http.NotFoundHandler(), federation.Relationship{Profile: federation.Web}, "404"},
		"B-13":                    {web.leaf(""), answer([]byte(`{"keys":[],"keys":[]}`)), federation.Relationship{Profile: federation.Web}, "twice"},
		"too long":                {web.leaf(""), answer([]byte(`{"keys":[],"x":"` + strings.Repeat("x", 5<<20) + `"}`)), federation.Relationship{Profile: federation.Web}, "longer than"},
		"F-5 another's authority": {web.leaf(""), answer(doc(func(b *federation.Bundle) { b.X509[0] = newAuthority(t, "spiffe://other.test").cert })), federation.Relationship{Profile: federation.Web}, "other.test"},
		"F-4 older":               {web.leaf(""), answer(doc(func(b *federation.Bundle) { b.Sequence = 5 })), federation.Relationship{Profile: federation.Web}, "sequence number 5 after 6"},
		"F-4 no sequence":         {web.leaf(""), answer([]byte(`{"keys":[]}`)), federation.Relationship{Profile: federation.Web}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			defer e.DeleteRelationships(t.Context(), []spiffeid.TrustDomain{there})
			known := newBundle(t, there, ca)
			known.Sequence = 6
			c.rel.TrustDomain, c.rel.URL = there, serve(t, c.cert, c.h)
			one(t, e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: c.rel, Bundle: known}}))
			err := e.RefreshBundle(t.Context(), there)
			if c.why == "" {
				if err != nil || e.Bundle(there).Equal(known) {
					t.Errorf("RefreshBundle = %v, and has %+v", err, e.Bundle(there))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("RefreshBundle = %v, want %q", err, c.why)
			}
			if got := e.Bundle(there); !got.Equal(known) || got.Sequence != 6 {
				t.Errorf("the known bundle is now %+v", got)
			}
		})
	}
}

// TestEmptyBundle (B-8): an empty bundle is news too. It ends all trust, also in an endpoint that it
// vouched for, until an operator sets another.
func TestEmptyBundle(t *testing.T) {
	a, b := newDomain(t, here, nil), newDomain(t, there, nil)
	b.url = serve(t, b.ca.leaf(b.id.String()), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"keys":[],"spiffe_sequence":8}`)
	}))
	first := newBundle(t, there, b.ca)
	one(t, a.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: b.relationship(federation.SPIFFE), Bundle: first}}))
	if err := a.RefreshBundle(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	if got := a.Bundle(there); got == nil || len(got.X509)+len(got.JWT)+len(got.WIT) != 0 || !strings.Contains(a.logs.String(), "nothing of that trust domain is trusted") {
		t.Errorf("the bundle is %+v", got)
	}
	if err := a.RefreshBundle(t.Context(), there); err == nil || !strings.Contains(err.Error(), "bundle set") {
		t.Errorf("RefreshBundle = %v", err)
	}
	first.Sequence = 9 // as an operator would who set it by hand
	one(t, a.SetBundles(t.Context(), []*federation.Bundle{first}))
	if err := a.RefreshBundle(t.Context(), there); !errors.Is(err, federation.ErrOlder) {
		t.Errorf("RefreshBundle = %v", err)
	}
}

// TestSharedWork: of several servers one fetches, and the next time any of them.
func TestSharedWork(t *testing.T) {
	web := newAuthority(t, "")
	pub := &publisher{bundle: newBundle(t, there, newAuthority(t, there.IDString()))}
	var fetched atomic.Int32
	url := serve(t, web.leaf(""), http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fetched.Add(1)
		federation.Endpoint{Own: pub.own, RefreshHint: 10 * time.Minute}.ServeHTTP(w, req)
	}))
	s := storetest.Open(t)
	var servers []*env
	for range 4 {
		servers = append(servers, openOver(t, s, here, func(c *federation.Config) { c.WebRoots = web.pool() }))
	}
	for _, e := range servers {
		e.run(t)
	}
	rel := federation.NewRelationship{Relationship: federation.Relationship{TrustDomain: there, URL: url, Profile: federation.Web}}
	one(t, servers[0].CreateRelationships(t.Context(), []federation.NewRelationship{rel}))
	for round := range 3 {
		for i, e := range servers {
			waitFor(t, fmt.Sprintf("round %d, server %d", round, i), func() bool { b := e.Bundle(there); return b != nil && b.Sequence == 7+uint64(round) })
		}
		if n := fetched.Load(); n != int32(round+1) {
			t.Errorf("fetched %d times in %d rounds", n, round+1)
		}
		pub.set(func(b *federation.Bundle) { b.Sequence++ })
		for _, e := range servers { // F-3: not before the hint has passed
			e.clock.add(9 * time.Minute)
		}
		servers[0].pass(t, 0)
		time.Sleep(50 * time.Millisecond)
		if n := fetched.Load(); n != int32(round+1) {
			t.Errorf("fetched before the refresh hint: %d times in %d rounds", n, round+1)
		}
		for _, e := range servers {
			e.clock.add(2*time.Minute + time.Second)
		}
		servers[0].pass(t, 0)
	}
}

// TestStatic: a configured relationship overrides the stored one and is not listed.
func TestStatic(t *testing.T) {
	web := newAuthority(t, "")
	pub := &publisher{bundle: newBundle(t, there, newAuthority(t, there.IDString()))}
	rel := federation.Relationship{TrustDomain: there, URL: serve(t, web.leaf(""), federation.Endpoint{Own: pub.own}), Profile: federation.Web}
	e := open(t, here, func(c *federation.Config) { c.WebRoots, c.Static = web.pool(), []federation.Relationship{rel} })
	stored := rel
	stored.URL = "https://127.0.0.1:1/"
	one(t, e.CreateRelationships(t.Context(), []federation.NewRelationship{{Relationship: stored}}))
	e.run(t)
	waitFor(t, "the bundle", func() bool { return e.HasBundle(there) })
	one(t, e.DeleteRelationships(t.Context(), []spiffeid.TrustDomain{there}))
	if list, _, err := e.ListRelationships(0, ""); err != nil || len(list) != 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
	if err := e.RefreshBundle(t.Context(), there); err != nil {
		t.Error(err)
	}
}

// TestEndpoint is about what we serve besides the document.
func TestEndpoint(t *testing.T) {
	web := newAuthority(t, "")
	pub := &publisher{bundle: newBundle(t, here, newAuthority(t, here.IDString()))}
	url := serve(t, web.leaf(""), federation.Endpoint{Own: pub.own, RefreshHint: time.Minute})
	// F-13: a client that has a certificate is not asked for it.
	asked := false
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: web.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return &tls.Certificate{}, nil
	}}}}
	do := func(method, path, etag string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSuffix(url, "/")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if etag != "" {
			req.Header.Set("If-None-Match", etag)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	got := do("GET", "/", "")
	if got.StatusCode != 200 || got.Header.Get("Content-Type") != "application/json" || asked {
		t.Errorf("F-14: %v; asked for a certificate: %t", got, asked)
	}
	if again := do("GET", "/", got.Header.Get("ETag")); again.StatusCode != 304 {
		t.Errorf("the same document again: %v", again.Status)
	}
	for want, req := range map[int][2]string{404: {"GET", "/x"}, 405: {"POST", "/"}, 200: {"HEAD", "/"}} {
		if resp := do(req[0], req[1], ""); resp.StatusCode != want {
			t.Errorf("%v: %v", req, resp.Status)
		}
	}
	pub.set(func(b *federation.Bundle) { b.X509, b.JWT, b.WIT = nil, nil, nil })
	if resp := do("GET", "/", ""); resp.StatusCode != 503 {
		t.Errorf("before there is a bundle: %v", resp.Status)
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: web.pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}}}
	if resp, err := old.Get(url); err == nil {
		resp.Body.Close()
		t.Error("F-7: TLS 1.1 is accepted")
	}
}
