// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodepb "github.com/assay-id/assay/proto/node"
)

// leafLies are what is wrong with a certificate, and what the agent says of it.
func leafLies(l *liar) []lie[*leaf] {
	key := newKey(l.t)
	return []lie[*leaf]{
		{"another's identity", "an X.509-SVID of", func(x *leaf) { x.tmpl.URIs = []*url.URL{spiffe("/victim")} }},
		{"a foreign identity", "could not get X509 bundle", func(x *leaf) { x.tmpl.URIs[0].Host = "other.test" }},
		{"no identity", "SPIFFE ID", func(x *leaf) { x.tmpl.URIs = nil }},
		{"two identities", "SPIFFE ID", func(x *leaf) { x.tmpl.URIs = append(x.tmpl.URIs, spiffe("/victim")) }},
		{"another's key", "another key", func(x *leaf) { x.key = key.Public() }},
		{"it has expired", "expired", func(x *leaf) { x.tmpl.NotAfter = time.Now().Add(-time.Second) }},
		{"it is from the future", "not yet valid", func(x *leaf) { x.tmpl.NotBefore = time.Now().Add(10 * time.Minute) }},
		{"a CA", "CA flag", func(x *leaf) { x.tmpl.IsCA = true }},
		{"a key that signs certificates", "KeyCertSign", func(x *leaf) { x.tmpl.KeyUsage = x509.KeyUsageCertSign }},
		{"a key that signs lists", "KeyCrlSign", func(x *leaf) { x.tmpl.KeyUsage = x509.KeyUsageCRLSign }},
		{"by a foreign authority", "unknown authority", func(x *leaf) { x.by = l.wrong }},
		{"no chain", "empty certificate chain", func(x *leaf) { x.raw = func([][]byte) [][]byte { return nil } }},
		{"no certificate", "malformed certificate", func(x *leaf) { x.raw = func([][]byte) [][]byte { return [][]byte{{1}} } }},
	}
}

type lie[T any] struct {
	what, says string
	put        func(T)
}

func tokenLies(l *liar) []lie[*token] {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	return []lie[*token]{
		{"another's token", "a token of", func(x *token) { x.claims["sub"] = "spiffe://example.org/victim" }},
		{"a token that has expired", "and it is", func(x *token) { x.claims["iat"], x.claims["exp"] = 100, 200 }},
		{"a token of the future", "and it is", func(x *token) { x.claims["iat"] = time.Now().Add(10 * time.Minute).Unix() }},
		{"a token without an end", "from when to when", func(x *token) { delete(x.claims, "exp") }},
		{"a token by a foreign key", "has not signed", func(x *token) { x.key = l.wrong.key }},
		{"a token by an unknown authority", "not in this agent's bundle", func(x *token) { x.kid = "other" }},
		{"a token by a secret", "malformed token", func(x *token) { x.alg, x.key = jose.HS256, secret }},
	}
}

// TestLyingServer: a server with a genuine identity lies about what it signs. The agent hands out none of it, and says why; it
// hands out the truth right after.
func TestLyingServer(t *testing.T) {
	l := startLiar(t)
	m := at(t, l, l.addr)
	w := m.workload(t)
	n := 0
	// told has one lie told about a new identity, which must not come through, and then the truth, which must.
	told := func(what, says string, put any, fetch func() (id string, err error)) {
		t.Helper()
		n++
		l.lies(put)
		l.identity(fmt.Sprint("w", n))
		said := strings.Count(m.logs.String(), says)
		eventually(t, "the entry to arrive", func() bool {
			s, err := m.AgentStatus(t.Context())
			return err == nil && s.Revision == l.revision
		})
		if id, err := fetch(); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: the agent handed out %q, %v", what, id, err)
		}
		eventually(t, fmt.Sprintf("the agent to say %q of %s", says, what), func() bool { return strings.Count(m.logs.String(), says) > said })
		l.lies(nil)
		if id, err := fetch(); err != nil || id != spiffe(l.path()).String() {
			t.Errorf("the truth after %s: %q, %v", what, id, err)
		}
	}
	fetchX509 := func() (string, error) {
		got, err := first(w.FetchX509SVID(call(t, 20*time.Second), &pb.X509SVIDRequest{}))
		if err != nil {
			return "", err
		}
		return got.Svids[0].SpiffeId, nil
	}
	fetchJWT := func() (string, error) {
		got, err := w.FetchJWTSVID(call(t, 20*time.Second), &pb.JWTSVIDRequest{Audience: []string{"a", "b"}})
		if err != nil {
			return "", err
		}
		return got.Svids[0].SpiffeId, nil
	}
	fetchWIT := func() (string, error) {
		got, err := first(w.FetchWITSVID(call(t, 20*time.Second), &pb.WITSVIDRequest{}))
		if err != nil {
			return "", err
		}
		return got.Svids[0].SpiffeId, nil
	}
	for _, c := range leafLies(l) {
		told(c.what, c.says, c.put, fetchX509)
	}
	for _, c := range tokenLies(l) {
		told("JWT: "+c.what, c.says, c.put, fetchJWT)
		told("WIT: "+c.what, c.says, c.put, fetchWIT)
	}
	for what, audience := range map[string]any{"another audience": []string{"c"}, "one audience more": []string{"a", "b", "c"}, "one audience less": []string{"a"}, "none": []string{}} {
		told("JWT: "+what, "for the audience", func(x *token) { x.claims["aud"] = audience }, fetchJWT)
	}
	told("WIT: another's key", "another key", func(x *token) {
		x.claims["cnf"] = map[string]any{"jwk": jose.JSONWebKey{Key: l.wrong.key.Public(), Algorithm: "ES256"}}
	}, fetchWIT)
	told("WIT: no key", "another key", func(x *token) { delete(x.claims, "cnf") }, fetchWIT)
}

// TestLyingAttestation: the same lies about the node's own SVID; the agent goes on asking, and takes the truth.
func TestLyingAttestation(t *testing.T) {
	l := startLiar(t)
	for _, c := range leafLies(l) {
		if c.what != "another's identity" { // which one a node gets is for the server to say
			l.nodeLies = append(l.nodeLies, c.put)
		}
	}
	l.nodeLies = slices.DeleteFunc(l.nodeLies, func(f func(*leaf)) bool { return f == nil })
	l.nodeLies = append(l.nodeLies[:4:4], func(x *leaf) { x.tmpl.URIs = []*url.URL{spiffe("/spire/server")} })
	m := at(t, l, l.addr)
	if m.NodeID != spiffe(nodePath).String() || l.attested != len(l.nodeLies)+1 {
		t.Errorf("the agent is %s after %d attestations", m.NodeID, l.attested)
	}
}

// TestLyingFeed: what can not be true changes nothing, and ends the stream; the agent begins a new one.
func TestLyingFeed(t *testing.T) {
	l := startLiar(t)
	m := at(t, l, l.addr)
	l.identity("w")
	w := m.workload(t)
	var had *pb.X509SVIDResponse
	eventually(t, "an SVID", func() (ok bool) {
		var err error
		had, err = first(w.FetchX509SVID(call(t, 20*time.Second), &pb.X509SVIDRequest{}))
		return err == nil
	})
	stream, err := w.FetchX509SVID(call(t, 5*time.Minute), &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	more := make(chan *pb.X509SVIDResponse, 10)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				close(more)
				return
			}
			more <- r
		}
	}()
	bundle := func(change func(*types.Bundle)) *nodepb.WatchResponse {
		b := l.bundle()
		change(b)
		return &nodepb.WatchResponse{Bundle: b}
	}
	stranger := &types.Entry{Id: "e", SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/late"}, ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: nodePath}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}}}
	for what, c := range map[string]struct {
		msg  *nodepb.WatchResponse
		says string
	}{
		"another's bundle":           {bundle(func(b *types.Bundle) { b.TrustDomain = "other.test" }), "the bundle of trust domain"},
		"an empty bundle":            {bundle(func(b *types.Bundle) { b.X509Authorities = nil }), "without X.509 authorities"},
		"a malformed bundle":         {bundle(func(b *types.Bundle) { b.X509Authorities[0] = &types.X509Certificate{Asn1: []byte{1}} }), "malformed X.509 authority"},
		"a malformed key":            {bundle(func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = []byte{1} }), "malformed JWT authority"},
		"an older bundle":            {bundle(func(b *types.Bundle) { b.SequenceNumber--; b.X509Authorities[0].Asn1 = l.wrong.cert.Raw }), "went back from bundle"},
		"deltas out of order":        {&nodepb.WatchResponse{Revision: l.revision - 1, Entries: []*types.Entry{stranger}}, "went back from revision"},
		"an older state of all":      {&nodepb.WatchResponse{Full: true, Revision: l.revision - 1}, "went back from revision"},
		"a malformed list":           {&nodepb.WatchResponse{Revocations: &nodepb.RevocationLists{Crls: [][]byte{{1}}}}, "malformed revocation list"},
		"a good bundle and bad list": {&nodepb.WatchResponse{Bundle: &types.Bundle{TrustDomain: "example.org", SequenceNumber: 5, X509Authorities: []*types.X509Certificate{{Asn1: l.wrong.cert.Raw}}}, Revocations: &nodepb.RevocationLists{Crls: [][]byte{{1}}}}, "malformed revocation list"},
	} {
		for len(l.opened) > 0 {
			<-l.opened
		}
		said := strings.Count(m.logs.String(), c.says)
		l.push(c.msg)
		select {
		case <-l.opened:
		case <-time.After(time.Minute):
			t.Fatalf("%s: the agent goes on", what)
		}
		eventually(t, fmt.Sprintf("the agent to say %q of %s", c.says, what), func() bool { return strings.Count(m.logs.String(), c.says) > said })
		got, err := first(w.FetchX509SVID(call(t, 20*time.Second), &pb.X509SVIDRequest{}))
		if err != nil || len(got.Svids) != 1 || string(got.Svids[0].X509Svid) != string(had.Svids[0].X509Svid) || string(got.Svids[0].Bundle) != string(had.Svids[0].Bundle) {
			t.Errorf("after %s: %v, %v", what, got, err)
		}
	}
	if len(more) != 0 {
		t.Errorf("the open stream was told %v", <-more)
	}
}
