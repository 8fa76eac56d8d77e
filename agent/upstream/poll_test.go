// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/selectors"
)

// TestServerOfSPIRE: entries are polled where there is no feed, and keys are signed by entry id.
func TestServerOfSPIRE(t *testing.T) {
	f := startFar(t, true)
	f.mu.Lock()
	f.polled = []*types.Entry{workload("polled")}
	f.mu.Unlock()
	c, s, _ := f.run(&quoter{JoinToken: JoinToken{Token: "x"}}, nil)
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
	chain, err := c.SignX509SVID(t.Context(), &selectors.Entry{ID: "polled"}, csr, &selectors.Facts{})
	if err != nil || chain[0].URIs[0].Path != "/polled" {
		t.Errorf("signed %v, %v", chain, err)
	}
	_, err = c.SignX509SVID(t.Context(), &selectors.Entry{ID: "other"}, csr, &selectors.Facts{})
	var r *Refusal
	if !errors.As(err, &r) {
		t.Errorf("an entry of another agent: %v", err)
	}
}
