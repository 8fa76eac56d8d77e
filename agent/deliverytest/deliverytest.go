// SPDX-License-Identifier: Apache-2.0

// Package deliverytest is what tests of the agent's faces stand on: a desk with a real svids.Manager behind
// it, whose workload and whose server can be made to fail.
package deliverytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// TD is the trust domain.
var TD = spiffeid.RequireTrustDomainFromString("example.org")

// Fixture is a desk and what it stands on.
type Fixture struct {
	Desk     *delivery.Desk
	Manager  *svids.Manager
	Signer   *Signer
	Workload *Workload
	Memory   *delivery.Memory

	mu       sync.Mutex
	denied   error
	logs     bytes.Buffer
	recorded []history.Delivery
}

// New returns a Fixture whose Manager knows nothing yet.
func New(t testing.TB) *Fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &Fixture{Signer: &Signer{Key: key}, Memory: delivery.NewMemory(), Workload: &Workload{Exit: make(chan struct{}), Change: make(chan struct{}),
		set: selectors.NewSet(selectors.Selector{Type: "unix", Value: "uid:1"}, selectors.Selector{Type: "unix", Value: "gid:1"})}}
	log := slog.New(slog.NewTextHandler(f, nil))
	f.Manager = svids.New(svids.Config{Signer: f.Signer, Logger: log, Now: time.Now})
	f.Desk = delivery.New(delivery.Config{Attest: func(context.Context) (delivery.Workload, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.Workload, f.denied
	}, SVIDs: f.Manager, History: f, Memory: f.Memory, Logger: log, Now: time.Now})
	return f
}

// Deny makes the attestor say the error.
func (f *Fixture) Deny(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.denied = err
}

// Record implements delivery.History.
func (f *Fixture) Record(list ...history.Delivery) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recorded = append(f.recorded, list...)
}

// Recorded returns what was written down.
func (f *Fixture) Recorded() []history.Delivery {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.recorded)
}

// Write takes a line of the log.
func (f *Fixture) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs.Write(p)
}

// Logs returns what was logged.
func (f *Fixture) Logs() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs.String()
}

// Workload is who the desk's attestor answers with: a process with the selectors unix:uid:1 and unix:gid:1.
type Workload struct {
	Exit   chan struct{} // close it: the process has exited
	Change chan struct{} // close it: something happened to the process

	set selectors.Set

	mu    sync.Mutex
	gone  error // what Check says
	check int
}

// Facts are empty.
func (c *Workload) Facts() *selectors.Facts { return &selectors.Facts{} }

// Selectors are what it was made with.
func (c *Workload) Selectors() selectors.Set { return c.set }

// Done is Exit.
func (c *Workload) Done() <-chan struct{} { return c.Exit }

// Changed is Change.
func (c *Workload) Changed() <-chan struct{} { return c.Change }

// Checks is how often it was checked.
func (c *Workload) Checks() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.check
}

// Check says what Becomes made it say.
func (c *Workload) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check++
	return c.gone
}

// Becomes makes Check say the error.
func (c *Workload) Becomes(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = err
}

// Signer is the far side of agent/svids: a CA that can be made to fail.
type Signer struct {
	Key  *ecdsa.PrivateKey
	mu   sync.Mutex
	err  error
	next int64
}

// SignX509SVID implements svids.Signer.
func (s *Signer) SignX509SVID(_ context.Context, e *selectors.Entry, csr []byte, _ *selectors.Facts) ([]*x509.Certificate, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, false, s.err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, false, err
	}
	s.next++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(s.next), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{e.SPIFFEID.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, req.PublicKey, s.Key)
	if err != nil {
		return nil, false, err
	}
	cert, err := x509.ParseCertificate(der)
	return []*x509.Certificate{cert}, false, err
}

// token signs the claims with the trust domain's key.
func (s *Signer) token(e *selectors.Entry, kid, typ string, claims map[string]any) (trust.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return trust.Token{}, s.err
	}
	s.next++
	claims["sub"], claims["iat"], claims["exp"], claims["n"] = e.SPIFFEID.String(), time.Now().Unix(), time.Now().Add(time.Hour).Unix(), s.next
	text, err := SignJWT(s.Key, kid, typ, claims)
	if err != nil {
		return trust.Token{}, err
	}
	return trust.ReadToken(text, e.SPIFFEID)
}

// SignJWT signs the claims with ES256.
func SignJWT(key crypto.Signer, kid, typ string, claims map[string]any) (string, error) {
	j, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", err
	}
	return jwt.Signed(j).Claims(claims).Serialize()
}

// SignJWTSVID implements svids.Signer.
func (s *Signer) SignJWTSVID(_ context.Context, e *selectors.Entry, audience []string, _ *selectors.Facts) (trust.Token, error) {
	return s.token(e, "jwt", "JWT", map[string]any{"aud": audience, "private": true})
}

// SignWITSVID implements svids.Signer.
func (s *Signer) SignWITSVID(_ context.Context, e *selectors.Entry, public []byte, algorithm string, _ *selectors.Facts) (trust.Token, error) {
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return trust.Token{}, err
	}
	return s.token(e, "wit", "wit+jwt", map[string]any{"cnf": map[string]any{"jwk": jose.JSONWebKey{Key: key, Algorithm: algorithm}}})
}

// Fails makes it say the error from now on.
func (s *Signer) Fails(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Refusal is a verdict of the server.
type Refusal struct{}

func (Refusal) Error() string { return "the server says no" }

// Refused is true.
func (Refusal) Refused() bool { return true }

// Entry returns an entry for spiffe://example.org/ID that demands selectors of the type unix.
func Entry(id string, revision int64, demands ...string) *selectors.Entry {
	e := &selectors.Entry{ID: id, SPIFFEID: spiffeid.RequireFromPath(TD, "/"+id), Revision: revision}
	for _, d := range demands {
		e.Selectors = append(e.Selectors, selectors.Selector{Type: "unix", Value: d})
	}
	return e
}

// Bundle pushes a bundle with an X.509 authority of serial number n, and JWT and WIT authorities "jwt" and "wit".
func (f *Fixture) Bundle(t testing.TB, n int64) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, f.Signer.Key.Public(), f.Signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(TD)
	b.AddX509Authority(cert)
	if err := errors.Join(b.AddJWTAuthority("jwt", f.Signer.Key.Public()), b.AddWITAuthority("wit", f.Signer.Key.Public())); err != nil {
		t.Fatal(err)
	}
	f.Manager.Trust(trust.Change{Own: BundleOf(t, b)})
}

// BundleOf returns the bundle without taints.
func BundleOf(t testing.TB, b *spiffebundle.Bundle) *trust.Bundle {
	t.Helper()
	out, err := trust.New(b, trust.Tainted{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
