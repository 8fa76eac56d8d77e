// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

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
	s.gets(t, "false [second]")
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
	s.gets(t, "false []")
	if c := <-changes; !c.Full || len(c.Foreign) != 0 {
		t.Errorf("a bundle that is gone: %+v", c)
	}
}

// syncs is a server of SPIRE's with more entries than fit a page of two.
func (f *far) SyncAuthorizedEntries(st entryv1.Entry_SyncAuthorizedEntriesServer) error {
	f.mu.Lock()
	all, asked := f.polled, f.asked
	f.mu.Unlock()
	if asked == nil {
		return status.Error(codes.Unimplemented, "not here")
	}
	if _, err := st.Recv(); err != nil {
		return err
	}
	if len(all) <= 2 {
		return st.Send(&entryv1.SyncAuthorizedEntriesResponse{Entries: all})
	}
	for i, e := range all {
		page := &entryv1.SyncAuthorizedEntriesResponse{EntryRevisions: []*entryv1.EntryRevision{{Id: e.Id, RevisionNumber: e.RevisionNumber, CreatedAt: e.CreatedAt}}, More: i+1 < len(all)}
		if err := st.Send(page); err != nil {
			return err
		}
	}
	for {
		req, err := st.Recv()
		if err != nil {
			return nil
		}
		for i, id := range req.Ids {
			asked <- id
			page := &entryv1.SyncAuthorizedEntriesResponse{More: i+1 < len(req.Ids)}
			if at := slices.IndexFunc(all, func(e *types.Entry) bool { return e.Id == id }); at >= 0 {
				page.Entries = all[at : at+1]
			}
			if err := st.Send(page); err != nil {
				return err
			}
		}
	}
}

// TestSyncWithSPIRE: only what changed is asked for and delivered, whether the server sends entries or revisions.
func TestSyncWithSPIRE(t *testing.T) {
	f := startFar(t, true)
	asked := make(chan string, 16)
	f.asked = asked
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &poller{conn: conn, first: true}
	at := func(id string, revision int64) *types.Entry {
		e := workload(id)
		e.RevisionNumber = revision
		return e
	}
	for _, c := range []struct {
		has     []*types.Entry
		changed string
		removed string
		asked   int
	}{
		{[]*types.Entry{at("a", 1), at("b", 1)}, "a b", "", 0},
		{[]*types.Entry{at("a", 1), at("b", 2)}, "b", "", 0},
		{[]*types.Entry{at("a", 1), at("b", 2), at("c", 1), at("d", 1)}, "c d", "", 2},
		{[]*types.Entry{at("a", 1), at("b", 2), at("c", 1), at("d", 1)}, "", "", 0},
		{[]*types.Entry{at("a", 1), at("c", 2), at("e", 1)}, "c e", "b d", 2},
		{nil, "", "a c e", 0},
	} {
		f.mu.Lock()
		f.polled = c.has
		f.mu.Unlock()
		full := p.first
		msg, err := p.entries(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var changed []string
		for _, e := range msg.Entries {
			changed = append(changed, e.Id)
		}
		slices.Sort(changed)
		slices.Sort(msg.Removed)
		if got := strings.Join(changed, " "); got != c.changed || strings.Join(msg.Removed, " ") != c.removed || len(asked) != c.asked || msg.Full != full {
			t.Errorf("%v: changed %s, removed %s, asked for %d, full %v", c.has, got, msg.Removed, len(asked), msg.Full)
		}
		for len(asked) > 0 {
			<-asked
		}
	}
}
