// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/agent/proof"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// TestServerOfSPIRE: entries are polled where there is no feed, and keys are signed by entry id.
func TestServerOfSPIRE(t *testing.T) {
	f := startFar(t, true)
	f.mu.Lock()
	f.polled = []*types.Entry{workload("polled")}
	f.mu.Unlock()
	c, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [polled]")
	f.mu.Lock()
	f.polled = append(f.polled, workload("second"))
	f.mu.Unlock()
	s.gets(t, "true [polled second]")
	if !c.Connected() {
		t.Error("not connected")
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := c.SignX509SVID(t.Context(), &selectors.Entry{ID: "polled", SPIFFEID: spiffeid.RequireFromPath(td, "/polled")}, csr, &selectors.Facts{})
	if err != nil || chain[0].URIs[0].Path != "/polled" {
		t.Errorf("signed %v, %v", chain, err)
	}
	_, _, err = c.SignX509SVID(t.Context(), &selectors.Entry{ID: "other"}, csr, &selectors.Facts{})
	var r *Refusal
	if !errors.As(err, &r) {
		t.Errorf("an entry of another agent: %v", err)
	}
	if _, err := c.SignWITSVID(t.Context(), &selectors.Entry{ID: "polled"}, nil, "ES256", &selectors.Facts{}); !errors.As(err, new(*Unsupported)) {
		t.Errorf("a server without WIT-SVIDs: %v", err)
	}
}

// TestTokensOfSPIRE: a JWT-SVID by entry id; what does not hold what was asked for is an error.
func TestTokensOfSPIRE(t *testing.T) {
	f := startFar(t, true)
	f.mu.Lock()
	f.polled = []*types.Entry{workload("polled")}
	f.mu.Unlock()
	c, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [polled]")
	e := &selectors.Entry{ID: "polled", SPIFFEID: spiffeid.RequireFromPath(td, "/polled")}
	token, err := c.SignJWTSVID(t.Context(), e, []string{"db"}, &selectors.Facts{})
	if err != nil || token.KeyID != "kid" || token.ExpiresAt.Sub(token.IssuedAt) != time.Minute {
		t.Errorf("got %+v, %v", token, err)
	}
	e.SPIFFEID = spiffeid.RequireFromPath(td, "/other")
	if token, err := c.SignJWTSVID(t.Context(), e, []string{"db"}, &selectors.Facts{}); err == nil {
		t.Errorf("a token of another identity was taken: %+v", token)
	}
}

// TestForeignBundlesOfSPIRE: those that entries federate with are polled; one that is not found is gone.
func TestForeignBundlesOfSPIRE(t *testing.T) {
	f := startFar(t, true)
	e := workload("polled")
	e.FederatesWith = []string{"one.test", "two.test"}
	f.polled, f.foreign = []*types.Entry{e}, map[string]*types.Bundle{"one.test": {TrustDomain: "one.test"}, "three.test": {TrustDomain: "three.test"}}
	changes := make(chan trust.Change, 16)
	_, s, _ := f.runTo(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil, &sink{entries: make(chan string, 16), bundles: func(c trust.Change) <-chan struct{} {
		changes <- c
		return settled
	}})
	s.gets(t, "true [polled]")
	if c := <-changes; !c.Full || c.Own == nil || len(c.Foreign) != 1 || c.Foreign[0].TrustDomain().Name() != "one.test" {
		t.Errorf("got %+v", c)
	}
	f.mu.Lock()
	delete(f.foreign, "one.test")
	f.mu.Unlock()
	s.gets(t, "true [polled]")
	if c := <-changes; !c.Full || len(c.Foreign) != 0 {
		t.Errorf("a bundle that is gone: %+v", c)
	}
}
