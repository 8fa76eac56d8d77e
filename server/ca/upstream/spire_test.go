// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/upstream"
	"github.com/assay-id/assay/server/storetest"
)

// above is the far side: a CA behind the RPCs that a nested server calls, and the Workload API that
// gives the nested server its SVID.
type above struct {
	svidv1.UnimplementedSVIDServer
	bundlev1.UnimplementedBundleServer
	workload.UnimplementedSpiffeWorkloadAPIServer
	ca              *ca.CA
	address, socket string
	wit             bool                                    // takes WIT authorities
	spoil           atomic.Pointer[func([][]byte) [][]byte] // changes the chain that it answers
}

func newAbove(t *testing.T, wit bool) *above {
	t.Helper()
	c, err := ca.Open(t.Context(), ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: storetest.Open(t)})
	check(t, err)
	t.Cleanup(c.Close)
	return serve(t, c, wit)
}

func serve(t *testing.T, c *ca.CA, wit bool) *above {
	t.Helper()
	a := &above{ca: c, wit: wit, socket: filepath.Join(t.TempDir(), "w.sock")}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	conf := &tls.Config{ClientAuth: tls.RequireAnyClientCert, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		chain, err := c.SignServer(key.Public())
		return &tls.Certificate{Certificate: ders(chain), PrivateKey: key}, err
	}}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	svidv1.RegisterSVIDServer(server, a)
	bundlev1.RegisterBundleServer(server, a)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	a.address = l.Addr().String()

	local := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(local, a)
	u, err := net.Listen("unix", a.socket)
	check(t, err)
	go server.Serve(l)
	go local.Serve(u)
	t.Cleanup(server.Stop)
	t.Cleanup(local.Stop)
	return a
}

var downstream = spiffeid.RequireFromPath(td, "/nested")

func (a *above) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for {
		chain, err := a.ca.SignWorkload(ca.Request{ID: downstream, PublicKey: key.Public()})
		if err != nil {
			return err
		}
		b, changed := a.ca.Bundle()
		if err := stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: downstream.String(), X509Svid: slices.Concat(ders(chain)...), X509SvidKey: der, Bundle: slices.Concat(ders(b.Roots())...)}}}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// admit checks the caller as the server's gate does.
func (a *above) admit(ctx context.Context) error {
	p, _ := peer.FromContext(ctx)
	certs := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates
	b, _ := a.ca.Bundle()
	id, _, err := x509svid.Verify(certs, x509bundle.FromX509Authorities(td, b.Roots()))
	if err != nil || id != downstream {
		return status.Errorf(codes.PermissionDenied, "the caller is %v: %v", id, err)
	}
	return nil
}

func (a *above) NewDownstreamX509CA(ctx context.Context, req *svidv1.NewDownstreamX509CARequest) (*svidv1.NewDownstreamX509CAResponse, error) {
	csr, err := x509.ParseCertificateRequest(req.Csr)
	if err = errors.Join(err, a.admit(ctx)); err != nil {
		return nil, err
	}
	chain, err := a.ca.SignDownstream(ca.DownstreamRequest{PublicKey: csr.PublicKey, TTL: time.Duration(req.PreferredTtl) * time.Second})
	if err != nil {
		return nil, err
	}
	b, _ := a.ca.Bundle()
	r := &svidv1.NewDownstreamX509CAResponse{CaCertChain: ders(chain), X509Authorities: ders(b.Roots())}
	if f := a.spoil.Load(); f != nil {
		r.CaCertChain = (*f)(r.CaCertChain)
	}
	return r, nil
}

func (a *above) PublishJWTAuthority(ctx context.Context, req *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	public, err := x509.ParsePKIXPublicKey(req.JwtAuthority.PublicKey)
	if err = errors.Join(err, a.admit(ctx)); err != nil {
		return nil, err
	}
	all, err := a.ca.PublishJWT(ctx, ca.KeyAuthority{ID: req.JwtAuthority.KeyId, PublicKey: public, ExpiresAt: time.Unix(req.JwtAuthority.ExpiresAt, 0)})
	return &bundlev1.PublishJWTAuthorityResponse{JwtAuthorities: jwtKeys(all)}, err
}

func (a *above) PublishWITAuthority(ctx context.Context, req *bundlev1.PublishWITAuthorityRequest) (*bundlev1.PublishWITAuthorityResponse, error) {
	if !a.wit {
		return nil, status.Error(codes.Unimplemented, "WIT-SVID functionality is not yet implemented")
	}
	public, err := x509.ParsePKIXPublicKey(req.WitAuthority.PublicKey)
	if err = errors.Join(err, a.admit(ctx)); err != nil {
		return nil, err
	}
	_, err = a.ca.PublishWIT(ctx, ca.KeyAuthority{ID: req.WitAuthority.KeyId, PublicKey: public, ExpiresAt: time.Unix(req.WitAuthority.ExpiresAt, 0)})
	return &bundlev1.PublishWITAuthorityResponse{}, err
}

func ders(certs []*x509.Certificate) (out [][]byte) {
	for _, cert := range certs {
		out = append(out, cert.Raw)
	}
	return out
}

func jwtKeys(all []ca.KeyAuthority) (out []*types.JWTKey) {
	for _, a := range all {
		public, err := x509.MarshalPKIXPublicKey(a.PublicKey)
		if err != nil {
			panic(err)
		}
		out = append(out, &types.JWTKey{KeyId: a.ID, PublicKey: public, ExpiresAt: a.ExpiresAt.Unix(), Tainted: a.Tainted})
	}
	return out
}

func (a *above) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	b, _ := a.ca.Bundle()
	out := &types.Bundle{TrustDomain: td.Name(), JwtAuthorities: jwtKeys(b.JWT)}
	for _, x := range b.X509 {
		out.X509Authorities = append(out.X509Authorities, &types.X509Certificate{Asn1: x.Cert.Raw, Tainted: x.Tainted})
	}
	return out, nil
}

// below opens a CA below it, whose agents know each bundle at once.
func (a *above) below(t *testing.T) (*ca.CA, error) {
	t.Helper()
	u := &upstream.SPIRE{TrustDomain: td, Address: a.address, WorkloadAPI: "unix://" + a.socket, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	t.Cleanup(func() { check(t, u.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var opened atomic.Pointer[ca.CA]
	acked := func(sequence uint64) []string {
		if c := opened.Load(); c != nil {
			if b, _ := c.Bundle(); b.Sequence < sequence {
				return []string{"an agent"}
			}
		}
		return nil
	}
	c, err := ca.Open(ctx, ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: storetest.Open(t), Upstream: u, Acked: acked})
	if err == nil {
		opened.Store(c)
		t.Cleanup(c.Close)
	}
	return c, err
}

func until(t *testing.T, what string, c *ca.CA, ok func(ca.Bundle) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		b, changed := c.Bundle()
		if ok(b) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited for %s: %+v", what, b)
		}
	}
}

func hasKey(keys []ca.KeyAuthority, id string) (there, tainted bool) {
	for _, k := range keys {
		if k.ID == id {
			return true, k.Tainted
		}
	}
	return false, false
}

// TestNested: a server below another gets its CA, publishes its keys, and follows all that changes
// above it.
func TestNested(t *testing.T) {
	a := newAbove(t, true)
	c, err := a.below(t)
	check(t, err)
	top, _ := a.ca.Bundle()
	own, _ := c.Bundle()
	if len(own.X509) != 1 || !own.X509[0].Cert.Equal(top.X509[0].Cert) {
		t.Fatalf("below, the roots are %+v", own.X509)
	}
	verifies := func(why string) []*x509.Certificate {
		t.Helper()
		chain := sign(t, c)
		b, _ := a.ca.Bundle()
		if _, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, b.Roots())); err != nil {
			t.Errorf("%s: an SVID from below: %v", why, err)
		}
		return chain
	}
	verifies("at first")
	for _, k := range []ca.Kind{ca.JWT, ca.WIT} {
		s, err := c.State(k)
		check(t, err)
		if e := top.Elements()[bundle.Key(k, s.Active.ID)]; e.ID == "" || !e.ExpiresAt().Equal(s.Active.ExpiresAt) {
			t.Errorf("above, %s authority %s is %+v", k, s.Active.ID, e)
		}
	}
	jwt, err := a.ca.State(ca.JWT)
	check(t, err)
	until(t, "the upper server's JWT key", c, func(b ca.Bundle) bool { there, _ := hasKey(b.JWT, jwt.Active.ID); return there })

	// The upper server leaves its authorities, taints them and revokes them.
	for _, k := range []ca.Kind{ca.X509, ca.JWT} {
		old, err := a.ca.State(k)
		check(t, err)
		next, err := a.ca.Prepare(t.Context(), k)
		check(t, err)
		_, err = a.ca.Activate(t.Context(), k, next.ID)
		check(t, err)
		_, err = a.ca.Taint(t.Context(), k, old.Active.ID)
		check(t, err)
		if k == ca.JWT {
			until(t, "the key's taint", c, func(b ca.Bundle) bool { _, tainted := hasKey(b.JWT, old.Active.ID); return tainted })
			_, err = a.ca.Revoke(t.Context(), k, old.Active.ID)
			check(t, err)
			until(t, "the key's revocation", c, func(b ca.Bundle) bool { there, _ := hasKey(b.JWT, old.Active.ID); return !there })
			continue
		}
		until(t, "the root's taint", c, func(b ca.Bundle) bool { return b.Tainted(ca.X509, old.Active.ID) })
		s, err := c.State(ca.X509)
		check(t, err)
		if s.Active.UpstreamID != next.ID {
			t.Errorf("the root was tainted below while the active authority is below %s", s.Active.UpstreamID)
		}
		_, err = a.ca.Revoke(t.Context(), k, old.Active.ID)
		check(t, err)
		until(t, "the revocation", c, func(b ca.Bundle) bool { return len(b.X509) == 1 && !b.X509[0].Cert.Equal(top.X509[0].Cert) })
		verifies("after the revocation")
	}
}

// TestNestedTwice: the chain of a server two levels down holds both intermediates and no root.
func TestNestedTwice(t *testing.T) {
	a := newAbove(t, false) // as SPIRE's servers, which know no WIT authorities
	middle, err := a.below(t)
	check(t, err)
	if w, err := middle.State(ca.WIT); err != nil || w.Active == nil {
		t.Errorf("without WIT above: %+v, %v", w, err)
	}
	bottom, err := serve(t, middle, false).below(t)
	check(t, err)
	chain := sign(t, bottom)
	top, _ := a.ca.Bundle()
	if len(chain) != 3 {
		t.Errorf("the chain has %d certificates, want 3", len(chain))
	}
	if _, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, top.Roots())); err != nil {
		t.Error(err)
	}
	s, err := bottom.State(ca.JWT)
	check(t, err)
	if there, _ := hasKey(top.JWT, s.Active.ID); !there {
		t.Error("the bottom's JWT key has not come to the top")
	}
}

// TestNestedAnswers: what the upper server answers is judged before anything is published.
func TestNestedAnswers(t *testing.T) {
	for name, spoil := range map[string]func([][]byte) [][]byte{
		"no chain":             func([][]byte) [][]byte { return nil },
		"no certificate":       func(c [][]byte) [][]byte { return [][]byte{c[0][1:]} },
		"another's key":        func([][]byte) [][]byte { return [][]byte{issue(t, "x", nil, nil).cert.Raw} },
		"the root, not a link": nil,
	} {
		a := newAbove(t, true)
		if spoil == nil {
			b, _ := a.ca.Bundle()
			spoil = func([][]byte) [][]byte { return [][]byte{b.X509[0].Cert.Raw} }
		}
		a.spoil.Store(&spoil)
		if c, err := a.below(t); err == nil {
			b, _ := c.Bundle()
			t.Errorf("%s: accepted; the bundle is %+v", name, b)
		}
	}
}

// TestNestedStranger: a server that is not the upper one of our trust domain gets nothing, and a
// server without an SVID says what to do.
func TestNestedStranger(t *testing.T) {
	a, stranger := newAbove(t, true), newAbove(t, true)
	a.address = stranger.address
	if _, err := a.below(t); err == nil || !strings.Contains(err.Error(), "x509svid") {
		t.Errorf("a server of another root: %v", err)
	}
	a.socket = filepath.Join(t.TempDir(), "none")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	u := &upstream.SPIRE{TrustDomain: td, Address: a.address, WorkloadAPI: "unix://" + a.socket, Logger: slog.New(slog.DiscardHandler)}
	if _, _, err := u.MintCA(ctx, nil, time.Hour); err == nil || !strings.Contains(err.Error(), "downstream") {
		t.Errorf("without an SVID: %v", err)
	}
}
