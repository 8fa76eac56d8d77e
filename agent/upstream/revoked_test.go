// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/proof"
	"github.com/assay-id/assay/agent/trust"
	nodepb "github.com/assay-id/assay/proto/node"
)

// The lists reach the workloads with the bundle, whichever of the two is new, and each keeps the other.
func TestListsComeWithTheBundle(t *testing.T) {
	f := startFar(t, false)
	next := make(chan *nodepb.WatchResponse, 16)
	f.pushes(next)
	bundles := make(chan *trust.Bundle, 16)
	settled := make(chan struct{})
	close(settled)
	_, s, _ := f.runTo(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil, &sink{entries: make(chan string, 16), bundles: func(c trust.Change) <-chan struct{} {
		if c.Own != nil {
			bundles <- c.Own
		}
		return settled
	}})
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(77), RevocationTime: time.Now()}}},
		&x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: f.ca.SubjectKeyId}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	revoked := []*x509.Certificate{{AuthorityKeyId: f.ca.SubjectKeyId, SerialNumber: big.NewInt(77)}}
	want := func(what string, sequence uint64, lists int) {
		t.Helper()
		b := take(t, bundles, "bundle "+what)
		if b.Sequence() != sequence || len(b.CRLs()) != lists || b.TaintsChain(revoked) != (lists > 0) {
			t.Errorf("%s: sequence %d, %d lists", what, b.Sequence(), len(b.CRLs()))
		}
	}
	next <- &nodepb.WatchResponse{Full: true, Bundle: f.bundle(5, false), Revocations: &nodepb.RevocationLists{}}
	s.gets(t, "true []")
	want("at first", 5, 0)
	next <- &nodepb.WatchResponse{Revocations: &nodepb.RevocationLists{Crls: [][]byte{der}}}
	want("with a list", 5, 1)
	next <- &nodepb.WatchResponse{Bundle: f.bundle(6, false)}
	want("with another bundle", 6, 1)
	next <- &nodepb.WatchResponse{Revocations: &nodepb.RevocationLists{}}
	want("without lists", 6, 0)
}

// RevokeSVID is the far server's: it knows one certificate.
func (f *far) RevokeSVID(_ context.Context, req *nodepb.RevokeSVIDRequest) (*nodepb.RevokeSVIDResponse, error) {
	if string(req.Certificate) != "mine" || req.Reason != 1 || req.Why != "ptrace" {
		return nil, status.Error(codes.PermissionDenied, "not signed for this agent")
	}
	return &nodepb.RevokeSVIDResponse{}, nil
}

func TestRevokeSVID(t *testing.T) {
	f := startFar(t, false)
	next := make(chan *nodepb.WatchResponse, 1)
	f.pushes(next)
	settled := make(chan struct{})
	close(settled)
	c, s, _ := f.runTo(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil, &sink{entries: make(chan string, 16), bundles: func(trust.Change) <-chan struct{} { return settled }})
	next <- &nodepb.WatchResponse{Full: true, Bundle: f.bundle(5, false)}
	s.gets(t, "true []")
	if err := c.RevokeSVID(t.Context(), []byte("mine"), 1, "ptrace"); err != nil {
		t.Error(err)
	}
	var verdict *Refusal
	if err := c.RevokeSVID(t.Context(), []byte("another's"), 1, "ptrace"); !errors.As(err, &verdict) || verdict.Message != "not signed for this agent" {
		t.Errorf("another's: %v", err)
	}
	c.spire.Store(true)
	var unable *Unsupported
	if err := c.RevokeSVID(t.Context(), []byte("mine"), 1, "ptrace"); !errors.As(err, &unable) {
		t.Errorf("at a server of SPIRE's: %v", err)
	}
}
