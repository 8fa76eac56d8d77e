// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/proof"
	"github.com/assay-id/assay/agent/trust"
	nodepb "github.com/assay-id/assay/proto/node"
)

// pushes makes f a server whose feed sends the messages one after the other, when told to; it returns what the
// agent acknowledges.
func (f *far) pushes(next <-chan *nodepb.WatchResponse) (acks chan uint64) {
	acks = make(chan uint64, 16)
	f.watch = func(st nodepb.Node_WatchServer) error {
		if _, err := st.Recv(); err != nil {
			return err
		}
		go func() {
			for {
				req, err := st.Recv()
				if err != nil {
					return
				}
				acks <- req.BundleSequence
			}
		}()
		for {
			select {
			case msg := <-next:
				if err := st.Send(msg); err != nil {
					return err
				}
			case <-st.Context().Done():
				return st.Context().Err()
			}
		}
	}
	return acks
}

func (f *far) bundle(sequence uint64, tainted bool) *types.Bundle {
	public, err := x509.MarshalPKIXPublicKey(f.key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return &types.Bundle{TrustDomain: td.Name(), SequenceNumber: sequence, X509Authorities: []*types.X509Certificate{{Asn1: f.ca.Raw, Tainted: tainted}},
		JwtAuthorities: []*types.JWTKey{{KeyId: "kid", PublicKey: public}}}
}

func take[T any](t *testing.T, from <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
	}
	return v
}

// A bundle is acknowledged when the workloads have it, and not before.
func TestAcknowledgedWhenSettled(t *testing.T) {
	f := startFar(t, false)
	next := make(chan *nodepb.WatchResponse, 16)
	acks := f.pushes(next)
	waits := make(chan chan struct{}, 16)
	_, s, _ := f.runTo(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil, &sink{entries: make(chan string, 16), bundles: func(trust.Change) <-chan struct{} {
		c := make(chan struct{})
		waits <- c
		return c
	}})
	next <- &nodepb.WatchResponse{Full: true, Bundle: f.bundle(5, false)}
	s.gets(t, "true []")
	for n := uint64(6); n < 9; n++ {
		next <- &nodepb.WatchResponse{Bundle: f.bundle(n, false)}
	}
	first := take(t, waits, "bundle 5")
	var last chan struct{}
	for range 3 {
		last = take(t, waits, "bundle")
	}
	select {
	case n := <-acks:
		t.Fatalf("bundle %d was acknowledged while workloads lack it", n)
	case <-time.After(50 * time.Millisecond):
	}
	close(first)
	if n := take(t, acks, "acknowledgement"); n != 5 {
		t.Errorf("acknowledged %d", n)
	}
	close(last)
	if n := take(t, acks, "acknowledgement"); n != 8 {
		t.Errorf("acknowledged %d, which workloads lack", n)
	}
}

// What names the entries that the agent has outlives a message about a bundle alone, and a connection.
func TestResume(t *testing.T) {
	f := startFar(t, false)
	resumed := make(chan string, 16)
	f.watch = func(st nodepb.Node_WatchServer) error {
		first, err := st.Recv()
		if err != nil {
			return err
		}
		resumed <- string(first.Resume)
		for _, msg := range []*nodepb.WatchResponse{{Full: true, State: []byte("entries 1"), Bundle: f.bundle(1, false)}, {Bundle: f.bundle(2, false)}} {
			if err := st.Send(msg); err != nil {
				return err
			}
		}
		return status.Error(codes.Aborted, "call again")
	}
	f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	if first, second := take(t, resumed, "feed"), take(t, resumed, "second feed"); first != "" || second != "entries 1" {
		t.Errorf("resumed from %q, then from %q", first, second)
	}
}

// What the feed says of other trust domains' bundles; one that can not be read is none.
func TestForeignBundles(t *testing.T) {
	f := startFar(t, false)
	next := make(chan *nodepb.WatchResponse, 16)
	f.pushes(next)
	changes := make(chan trust.Change, 16)
	f.runTo(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil, &sink{entries: make(chan string, 16), bundles: func(c trust.Change) <-chan struct{} {
		changes <- c
		return settled
	}})
	broken := &types.Bundle{TrustDomain: "broken.test", JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: []byte("x")}}}
	next <- &nodepb.WatchResponse{Full: true, Bundle: f.bundle(1, false), Federated: []*types.Bundle{{TrustDomain: "one.test", SequenceNumber: 4}, broken, {TrustDomain: "Not A Name"}}}
	c := take(t, changes, "change")
	if !c.Full || c.Own.Sequence() != 1 || len(c.Foreign) != 1 || c.Foreign[0].Sequence() != 4 || len(c.Removed) != 1 || c.Removed[0].Name() != "broken.test" {
		t.Errorf("got %+v", c)
	}
	f.log.has(t, "bundle of another trust domain ignored")
	next <- &nodepb.WatchResponse{FederatedRemoved: []string{"one.test"}}
	if c := take(t, changes, "change"); c.Full || c.Own != nil || len(c.Foreign) != 0 || len(c.Removed) != 1 {
		t.Errorf("got %+v", c)
	}
}

// The agent's own SVID is replaced soon when its authority is tainted; where the new one is by the same
// authority, not again and again.
func TestOwnSVIDTainted(t *testing.T) {
	f := startFar(t, false)
	tainted := make(chan bool, 1)
	f.watch = func(st nodepb.Node_WatchServer) error {
		if err := st.Send(&nodepb.WatchResponse{Full: true, Bundle: f.bundle(1, len(tainted) > 0)}); err != nil {
			return err
		}
		if len(tainted) == 0 {
			tainted <- true
			if err := st.Send(&nodepb.WatchResponse{Bundle: f.bundle(2, true)}); err != nil {
				return err
			}
		}
		<-st.Context().Done()
		return st.Context().Err()
	}
	_, s, _ := f.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true []")
	s.gets(t, "true []") // of the second connection, with the new SVID
	time.Sleep(2 * taintSpread)
	if n := f.attestations(); n != 2 {
		t.Errorf("attested %d times", n)
	}
}
