// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/assay-id/assay/cmd/dev"
)

// answers is an open stream of FetchX509SVID, as bytes: go-spiffe's client does not show the lists.
func (m *machine) answers(t *testing.T) func() *pb.X509SVIDResponse {
	t.Helper()
	conn, err := grpc.NewClient(m.WorkloadSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	stream, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return func() *pb.X509SVIDResponse {
		t.Helper()
		resp, err := stream.Recv()
		if err != nil {
			t.Fatalf("%v\n--- logs\n%s", err, m.logs)
		}
		return resp
	}
}

func leafOf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	certs, err := x509.ParseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

var errRevoked = errors.New("the peer's SVID is revoked")

// notRevoked is what docs/revocation.md has for relying parties.
func notRevoked(chain, authorities []*x509.Certificate, crls [][]byte, now time.Time) error {
	for i, cert := range chain {
		for _, der := range crls {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				return err
			}
			if !bytes.Equal(list.AuthorityKeyId, cert.AuthorityKeyId) {
				continue // another authority's
			}
			signed := false
			for _, issuer := range append(chain[i+1:len(chain):len(chain)], authorities...) {
				signed = signed || list.CheckSignatureFrom(issuer) == nil
			}
			if !signed || now.After(list.NextUpdate) {
				return errors.New("the revocation list is not signed by the authority, or is too old")
			}
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return errRevoked
				}
			}
		}
	}
	return nil
}

// An operator revokes what an entry's workloads have: every open stream gets the list and a new SVID, at once; who checks the
// list refuses the old one, openssl too.
func TestRevocationReachesEveryStream(t *testing.T) {
	e := shared.create(t, "/revoked", "--selector", me(t))
	const streams = 10
	var all []func() *pb.X509SVIDResponse
	var old *x509.Certificate
	var chain []byte
	for range streams {
		next := shared.answers(t)
		chain = next().Svids[0].X509Svid
		all, old = append(all, next), leafOf(t, chain)
	}
	began := time.Now()
	var out struct{ Revoked int }
	shared.must(t, &out, "svid", "revoke", "--entry", e.ID, "--reason", "keyCompromise", "--why", "scenario")
	if out.Revoked != 1 {
		t.Errorf("revoked %d", out.Revoked)
	}
	told := time.Since(began)
	var last *pb.X509SVIDResponse
	for i, next := range all {
		for last = next(); leafOf(t, last.Svids[0].X509Svid).SerialNumber.Cmp(old.SerialNumber) == 0; last = next() {
			if len(last.Crl) == 0 {
				t.Errorf("stream %d: a push without a list", i)
			}
		}
		if len(last.Crl) != 1 {
			t.Fatalf("stream %d: %d lists", i, len(last.Crl))
		}
	}
	if d := time.Since(began); d > 2*time.Second && os.Getenv("ASSAY_GUEST") != "1" {
		t.Errorf("the last of %d streams has its new SVID after %v", streams, d)
	} else {
		t.Logf("the operator has an answer after %v; %d streams have list and new SVID after %v", told, streams, d)
	}
	fresh := last.Svids[0].X509Svid
	authorities, err := x509.ParseCertificates(last.Svids[0].Bundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := notRevoked([]*x509.Certificate{old}, authorities, last.Crl, time.Now()); !errors.Is(err, errRevoked) {
		t.Errorf("the old SVID: %v", err)
	}
	if err := notRevoked([]*x509.Certificate{leafOf(t, fresh)}, authorities, last.Crl, time.Now()); err != nil {
		t.Errorf("the new SVID: %v", err)
	}
	if err := notRevoked([]*x509.Certificate{leafOf(t, fresh)}, authorities, last.Crl, time.Now().Add(2*time.Hour)); err == nil || errors.Is(err, errRevoked) {
		t.Errorf("by a list that is too old: %v", err)
	}
	if err := notRevoked([]*x509.Certificate{leafOf(t, fresh)}, nil, last.Crl, time.Now()); err == nil {
		t.Error("by a list that nobody signed")
	}
	var listed []revoked
	shared.must(t, &listed, "svid", "revoked")
	if !slices.Contains(listed, revoked{old.SerialNumber.String(), "scenario", true}) {
		t.Errorf("assay svid revoked: %+v", listed)
	}
	shared.openssl(t, chain, false)
	shared.openssl(t, fresh, true)
}

// openssl judges an SVID by what the CLI writes.
func (m *machine) openssl(t *testing.T, chain []byte, good bool) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		nativeOnly(t, "a guest has no openssl")
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"roots": m.must(t, nil, "bundle", "show"), "crl": m.must(t, nil, "crl", "show", "--pem"), "leaf": pemOf(leafOf(t, chain))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := exec.Command("openssl", "verify", "-crl_check", "-CAfile", dir+"/roots", "-CRLfile", dir+"/crl", dir+"/leaf").CombinedOutput()
	if (err == nil) != good || !good && !bytes.Contains(text, []byte("certificate revoked")) {
		t.Errorf("openssl, of an SVID that is good %t: %s, %v", good, text, err)
	}
}

// A suspended node: its workloads' SVIDs are in the list.
func TestSuspensionReachesRelyingParties(t *testing.T) {
	m := start(t, dev.Options{})
	m.create(t, "/suspended", "--selector", me(t))
	x, err := workloadapi.FetchX509Context(t.Context(), workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	leaf := x.DefaultSVID().Certificates[0]
	m.must(t, nil, "node", "suspend", m.NodeID, "--reason", "scenario")
	eventually(t, "the list to have its workload's SVID", func() bool {
		var listed []revoked
		m.must(t, &listed, "svid", "revoked")
		return slices.ContainsFunc(listed, func(l revoked) bool { return l.Serial == leaf.SerialNumber.String() && l.Listed })
	})
}

// revoked is the part of a revocation that tests look at.
type revoked struct {
	Serial, Why string
	Listed      bool
}

func pemOf(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
