// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/assay-id/assay/agent/proof"
	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/tpm"
)

// quoter answers as a TPM would, with what it was asked; for a time it can not.
type quoter struct {
	proof.JoinToken
	faults atomic.Int32
}

func (q *quoter) Requote(_ context.Context, key crypto.Signer, question, binding []byte, h tpm.History) ([]byte, error) {
	if q.faults.Add(-1) >= 0 {
		return nil, errors.New("the TPM is busy")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	return bytes.Join([][]byte{question, spki, binding, h.Head[:], {byte(h.Count)}}, []byte("|")), err
}

type head struct{}

func (head) Head() (uint64, [32]byte) { return 7, [32]byte{7} }

func standing(state string, attestAgain bool) error {
	st, err := status.New(codes.PermissionDenied, "agent is "+state+" (PCR 10 moved)").WithDetails(protoadapt.MessageV1Of(&nodepb.Standing{State: state, AttestAgain: attestAgain}))
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// ask puts one question and checks that the answer is about this connection and this node.
func ask(t *testing.T, st nodepb.Node_RequoteServer) {
	t.Helper()
	if err := st.Send(&nodepb.RequoteQuestion{Payload: []byte("question")}); err != nil {
		return
	}
	a, err := st.Recv()
	if err != nil {
		return
	}
	p, _ := peer.FromContext(st.Context())
	state := p.AuthInfo.(credentials.TLSInfo).State
	binding, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		t.Error(err)
	}
	h := [32]byte{7}
	if want := bytes.Join([][]byte{[]byte("question"), state.PeerCertificates[0].RawSubjectPublicKeyInfo, binding, h[:], {7}}, []byte("|")); !bytes.Equal(a.Payload, want) {
		t.Errorf("answer %q, want %q", a.Payload, want)
	}
}

func TestRequote(t *testing.T) {
	f := startFar(t, false)
	asked := make(chan bool)
	f.requote = func(st nodepb.Node_RequoteServer) error {
		for {
			ask(t, st)
			select {
			case asked <- true:
			case <-st.Context().Done():
				return nil
			}
		}
	}
	a := &quoter{JoinToken: proof.JoinToken{Token: "x"}}
	a.faults.Store(2)
	_, s, _ := f.run(a, head{})
	s.gets(t, "true [pushed]")
	for range 3 {
		<-asked
	}
	f.log.has(t, "the TPM is busy")
	if n := f.attestations(); n != 1 || len(s.entries) != 0 {
		t.Errorf("%d attestations, %d more messages: a fault of the TPM cut the feed", n, len(s.entries))
	}
}

// TestAttestAgain: the server can ask for a full attestation at any time; workloads notice nothing.
func TestAttestAgain(t *testing.T) {
	f := startFar(t, false)
	booted := make(chan bool)
	f.requote = func(st nodepb.Node_RequoteServer) error {
		ask(t, st)
		select {
		case <-booted:
			return status.Error(codes.Aborted, "the machine was booted again")
		case <-st.Context().Done():
			return nil
		}
	}
	_, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, head{})
	s.gets(t, "true [pushed]")
	booted <- true
	s.gets(t, "true [pushed]")
	if n := f.attestations(); n != 2 {
		t.Errorf("%d attestations, want 2", n)
	}
	f.log.has(t, "booted again")
}

// TestSuspended: everything is dropped at once, and the agent comes back by attesting in full.
func TestSuspended(t *testing.T) {
	f := startFar(t, false)
	suspend, back := make(chan bool), make(chan bool, 1)
	f.requote = func(st nodepb.Node_RequoteServer) error {
		select {
		case <-suspend:
			f.admits(func([]byte, func([]byte) []byte) error {
				select {
				case <-back:
					return nil
				default:
					return standing("suspended", false)
				}
			})
			return standing("suspended", false)
		case <-st.Context().Done():
			return nil
		}
	}
	_, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [pushed]")
	suspend <- true
	began := time.Now()
	s.gets(t, "true []")
	if d := time.Since(began); d > time.Second {
		t.Errorf("entries were dropped after %s", d)
	}
	back <- true
	for got := ""; got != "true [pushed]"; {
		got = <-s.entries
	}
	f.log.has(t, "PCR 10 moved")
}

// TestPending: an agent that waits for approval asks again by itself.
func TestPending(t *testing.T) {
	f := startFar(t, false)
	var tries atomic.Int32
	f.admits(func([]byte, func([]byte) []byte) error {
		if tries.Add(1) < 3 {
			return standing("pending", false)
		}
		return nil
	})
	_, s, _ := f.run(proof.JoinToken{Token: "x"}, nil)
	s.gets(t, "true []")
	s.gets(t, "true []")
	s.gets(t, "true [pushed]")
	f.log.has(t, "pending by the server")
}

// TestRefusedLater: a machine that was admitted and then fails its attestation loses all at once, and
// keeps trying; one that never was ends.
func TestRefusedLater(t *testing.T) {
	f := startFar(t, false)
	refuse := func([]byte, func([]byte) []byte) error {
		return status.Error(codes.PermissionDenied, "PCR 4 is not the golden one")
	}
	booted := make(chan bool)
	f.requote = func(st nodepb.Node_RequoteServer) error {
		select {
		case <-booted:
			return status.Error(codes.Aborted, "booted again")
		case <-st.Context().Done():
			return nil
		}
	}
	_, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [pushed]")
	f.admits(refuse)
	booted <- true
	s.gets(t, "true []")
	f.admits(nil)
	for got := ""; got != "true [pushed]"; {
		got = <-s.entries
	}
	f.admits(refuse)
	_, _, ended := f.run(proof.JoinToken{Token: "x"}, nil)
	if err := <-ended; !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("a node that never was admitted: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{most: time.Second}
	if d := b.next(); d != 0 {
		t.Errorf("the first step is %s", d)
	}
	for range 20 {
		if d := b.next(); d < 200*time.Millisecond || d > 1100*time.Millisecond {
			t.Errorf("a step of %s", d)
		}
	}
	b.reset()
	b.first = 500 * time.Millisecond
	if d := b.next(); d < 450*time.Millisecond || d > 550*time.Millisecond {
		t.Errorf("the first step is %s", d)
	}
}
