// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	evidencev1 "github.com/assay-id/assay/proto/evidence"
	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm/policy"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// script plays the part that judges quotes; everything else is real.
type script struct {
	run   func(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error
	fresh atomic.Bool
}

func (s *script) Run(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error {
	return s.run(ctx, id, spki, binding, ask)
}

func (s *script) Fresh(spiffeid.ID) bool { return s.fresh.Load() }

func (s *script) Vouched(spiffeid.ID) []nodes.Anchor { return nil }
func (s *script) Check(*nodes.Node, string, []*policy.Group) ([]policy.Finding, bool, error) {
	return nil, true, nil
}

// site is a server with one admitted node, and the node's connection.
type site struct {
	nodes   *nodes.Registry
	entries *entries.Registry
	node    spiffeid.ID
	spki    []byte
	client  nodev1.NodeClient
	entry   entryv1.EntryClient
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func open(t *testing.T, continuous Continuous, attestor string) *site {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	log, store, dir := slog.New(slog.NewTextHandler(t.Output(), nil)), storetest.Open(t), t.TempDir()
	signer, err := ca.Open(t.Context(), ca.Config{Dir: dir, TrustDomain: td, Store: store, TTL: 24 * time.Hour, X509SVIDTTL: time.Hour, AgentTTL: time.Hour, MaxAge: time.Hour, Logger: log})
	must(t, signer, err)
	t.Cleanup(signer.Close)
	s := &site{node: spiffeid.RequireFromPath(td, "/spire/agent/"+attestor+"/"+strings.Repeat("0", 64))}
	s.nodes, err = nodes.Open(t.Context(), nodes.Config{Store: store, Logger: log})
	must(t, s.nodes, err)
	t.Cleanup(s.nodes.Close)
	s.entries, err = entries.Open(t.Context(), entries.Config{Store: store, TrustDomain: td, Logger: log})
	must(t, s.entries, err)
	t.Cleanup(s.entries.Close)

	own := must(t, newKey(), nil)
	chain, err := signer.SignAgent(spiffeid.RequireFromPath(td, "/spire/server"), own.Public())
	must(t, chain, err)
	others, err := federation.Open(t.Context(), federation.Config{Store: store, TrustDomain: td, Entries: s.entries, Logger: log})
	must(t, others, err)
	t.Cleanup(others.Close)
	revocations, err := revocation.Open(t.Context(), revocation.Config{Dir: filepath.Join(dir, "signed"), ServerID: signer.ServerID(), Store: store, Authorities: signer, Life: 24 * time.Hour, Logger: log})
	must(t, revocations, err)
	t.Cleanup(revocations.Close)
	streams := NewStreams()
	api := New(Config{
		TrustDomain: td, Entries: s.entries, Signer: signer, Federation: others, Revocations: revocations, Nodes: s.nodes, Continuous: continuous, Streams: streams, Logger: log,
		ServerSVID: func() (*tls.Certificate, error) { return certificate(chain, own), nil },
	})
	t.Cleanup(s.nodes.OnChange(streams.NodeChanged))
	tcp := must2(t)(net.Listen("tcp", "127.0.0.1:0"))
	unix := must2(t)(net.Listen("unix", filepath.Join(dir, "s")))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, tcp, unix) }()

	key := newKey()
	svid, err := signer.SignAgent(s.node, key.Public())
	must(t, svid, err)
	s.spki = svid[0].RawSubjectPublicKeyInfo
	_, err = s.nodes.Attested(t.Context(), nodes.Attestation{ID: s.node, Type: attestor, CanReattest: true}, svid[0].SerialNumber.String(), svid[0].NotAfter)
	must(t, 0, err)
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*certificate(svid, key)}}
	conn, err := grpc.NewClient(tcp.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	must(t, conn, err)
	t.Cleanup(func() { // first of all
		conn.Close()
		cancel()
		<-done
	})
	s.client, s.entry = nodev1.NewNodeClient(conn), entryv1.NewEntryClient(conn)
	return s
}

func must2(t *testing.T) func(net.Listener, error) net.Listener {
	return func(l net.Listener, err error) net.Listener { t.Helper(); return must(t, l, err) }
}

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func certificate(chain []*x509.Certificate, key *ecdsa.PrivateKey) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: key}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// TestRequote: the server asks, and both sides know the same connection and the same key.
func TestRequote(t *testing.T) {
	var binding []byte
	judge := &script{}
	s := open(t, judge, "tpm")
	judge.run = func(ctx context.Context, id spiffeid.ID, spki, b []byte, ask func(context.Context, []byte) ([]byte, error)) error {
		if id != s.node || !bytes.Equal(spki, s.spki) || len(b) != 32 {
			t.Errorf("Run for %s, key %x, binding %x", id, spki, b)
		}
		binding = b
		for _, q := range []string{"one", "two"} {
			answer, err := ask(ctx, []byte(q))
			if err != nil || string(answer) != q+"!" {
				t.Errorf("answer %q, %v", answer, err)
			}
		}
		return errors.New("the machine was booted again")
	}
	stream, err := s.client.Requote(t.Context())
	must(t, stream, err)
	for range 2 {
		q, err := stream.Recv()
		must(t, q, err)
		must(t, 0, stream.Send(&nodev1.RequoteAnswer{Payload: append(q.Payload, '!')}))
	}
	_, err = stream.Recv()
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "booted again") {
		t.Errorf("the end: %v", err)
	}
	p, _ := peer.FromContext(stream.Context())
	state := p.AuthInfo.(credentials.TLSInfo).State
	ours, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if must(t, ours, err); !bytes.Equal(ours, binding) {
		t.Errorf("the bindings are %x and %x", ours, binding)
	}
}

// TestRequoteSuspends: drift found on the stream ends this stream and Watch at once.
func TestRequoteSuspends(t *testing.T) {
	judge := &script{}
	s := open(t, judge, "tpm")
	judge.run = func(ctx context.Context, id spiffeid.ID, _, _ []byte, ask func(context.Context, []byte) ([]byte, error)) error {
		if _, err := ask(ctx, []byte("?")); err != nil {
			return err
		}
		if err := s.nodes.Suspend(ctx, id, "PCR 10 moved", nodes.ByDrift); err != nil {
			return err
		}
		return &nodes.DeniedError{Agent: id, Reason: nodes.Suspended, Detail: "PCR 10 moved"}
	}
	watch, err := s.client.Watch(t.Context())
	must(t, watch, err)
	must(t, 0, watch.Send(&nodev1.WatchRequest{}))
	must2 := func(_ any, err error) { must(t, 0, err) }
	must2(watch.Recv())
	stream, err := s.client.Requote(t.Context())
	must(t, stream, err)
	must2(stream.Recv())
	must(t, 0, stream.Send(&nodev1.RequoteAnswer{}))
	for what, recv := range map[string]func() error{
		"Requote": func() error { _, err := stream.Recv(); return err }, "Watch": func() error { _, err := watch.Recv(); return err },
	} {
		if err := recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "PCR 10 moved") {
			t.Errorf("%s ends with %v", what, err)
		}
	}
}

// TestRequoteEnds: a node that goes, or is banned, ends the judge's work.
func TestRequoteEnds(t *testing.T) {
	judge := &script{}
	s := open(t, judge, "tpm")
	ended := make(chan error, 1)
	judge.run = func(ctx context.Context, _ spiffeid.ID, _, _ []byte, ask func(context.Context, []byte) ([]byte, error)) error {
		_, err := ask(ctx, []byte("?"))
		ended <- err
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.client.Requote(ctx)
	must(t, stream, err)
	_, err = stream.Recv()
	must(t, 0, err)
	cancel()
	if err := <-ended; err == nil {
		t.Error("a node that went has answered")
	}
	stream, err = s.client.Requote(t.Context())
	must(t, stream, err)
	_, err = stream.Recv()
	must(t, 0, err)
	must(t, 0, s.nodes.Ban(t.Context(), s.node, "stolen", "operator root"))
	if err := <-ended; err == nil {
		t.Error("a banned node has answered")
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of a banned node ends with %v", err)
	}
}

// TestFresh: nothing is signed for a node that did not answer lately.
func TestFresh(t *testing.T) {
	judge := &script{}
	s := open(t, judge, "tpm")
	res := s.entries.Create(t.Context(), []*selectors.Entry{{
		ParentID: s.node, SPIFFEID: spiffeid.RequireFromPath(s.node.TrustDomain(), "/w"), Selectors: []selectors.Selector{{Type: "evidence", Value: "tier:t3"}},
	}})
	must(t, 0, res[0].Err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey())
	must(t, csr, err)
	facts := &evidencev1.Facts{Tier: evidencev1.Tier_TIER_T3, Process: &evidencev1.ProcessKey{Tgid: 1, BootId: "b", ExecId: 1}, Credentials: &evidencev1.Credentials{Uid: 1}}
	sign := func() error {
		_, err := s.client.SignX509SVID(t.Context(), &nodev1.SignX509SVIDRequest{EntryId: res[0].Entry.ID, Csr: csr, Facts: facts})
		return err
	}
	started := time.Now()
	if err := sign(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no quote") || time.Since(started) < freshWithin {
		t.Errorf("signing without a quote: %v after %s", err, time.Since(started))
	}
	time.AfterFunc(500*time.Millisecond, func() { judge.fresh.Store(true) })
	if err := sign(); err != nil {
		t.Errorf("signing while the quote comes: %v", err)
	}
}

// TestOnlyTPMsRequote: others have nothing to quote with, and are signed for without.
func TestOnlyTPMsRequote(t *testing.T) {
	s := open(t, &script{}, "x509pop")
	stream, err := s.client.Requote(t.Context())
	must(t, stream, err)
	if _, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Requote of a node without a TPM: %v", err)
	}
	if (&Server{cfg: Config{Nodes: s.nodes, Continuous: &script{}}}).fresh(t.Context(), s.node) != nil {
		t.Error("a node without a TPM is not fresh")
	}
}
