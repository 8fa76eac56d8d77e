// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/assay-id/assay/selectors"
)

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func patterns(t *testing.T, texts ...string) (ps []Pattern) {
	t.Helper()
	for _, text := range texts {
		p, err := ParsePattern(text)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		holds       bool
	}{
		{"spiffe://a.org/x", "spiffe://a.org/x", true}, {"spiffe://a.org/x", "spiffe://a.org/x/y", false},
		{"spiffe://a.org/x/*", "spiffe://a.org/x/y/z", true}, {"spiffe://a.org/x/*", "spiffe://a.org/x", false},
		{"spiffe://a.org/x/*", "spiffe://a.org/xy", false}, {"spiffe://a.org/x/*", "spiffe://b.org/x/y", false},
		{"spiffe://a.org/*", "spiffe://a.org/y", true}, {"spiffe://a.org/*", "spiffe://a.org", false},
	} {
		if got := patterns(t, c.pattern)[0].holds(spiffeid.RequireFromString(c.id)); got != c.holds {
			t.Errorf("%s holds %s: %t", c.pattern, c.id, got)
		}
	}
	for _, text := range []string{"", "*", "/*", "spiffe://a.org/*/x", "spiffe://*", "a.org/x"} {
		if p, err := ParsePattern(text); err == nil {
			t.Errorf("%q was read as %v", text, p)
		}
	}
}

// TestScope: nothing is within a role's bounds by being left out of them.
func TestScope(t *testing.T) {
	entry := func(change func(*selectors.Entry)) *selectors.Entry {
		e := &selectors.Entry{SPIFFEID: spiffeid.RequireFromString("spiffe://a.org/pay/x"), ParentID: spiffeid.RequireFromString("spiffe://a.org/node/1"),
			Selectors: []selectors.Selector{{Type: "unix", Value: "uid:1"}}}
		if change != nil {
			change(e)
		}
		return e
	}
	role := &Role{Name: "r", SPIFFEIDs: patterns(t, "spiffe://a.org/pay/*"), Parents: patterns(t, "spiffe://a.org/node/*"), SelectorTypes: []string{"unix"},
		Nodes: patterns(t, "spiffe://a.org/spire/agent/tpm/*"), TrustDomains: []string{"b.org"}}
	boss := spiffeid.RequireFromString("spiffe://a.org/pay/boss")
	s := Scope{roles: []*Role{role}, privileged: func(id spiffeid.ID) bool { return id == boss }}
	if err := s.Entry(entry(nil)); err != nil {
		t.Error(err)
	}
	for what, e := range map[string]*selectors.Entry{
		"another ID":          entry(func(e *selectors.Entry) { e.SPIFFEID = spiffeid.RequireFromString("spiffe://a.org/payx") }),
		"another parent":      entry(func(e *selectors.Entry) { e.ParentID = spiffeid.RequireFromString("spiffe://a.org/spire/server") }),
		"another selector":    entry(func(e *selectors.Entry) { e.Selectors = append(e.Selectors, selectors.Selector{Type: "exe"}) }),
		"an admin":            entry(func(e *selectors.Entry) { e.Admin = true }),
		"a nested server":     entry(func(e *selectors.Entry) { e.Downstream = true }),
		"one who is an admin": entry(func(e *selectors.Entry) { e.SPIFFEID = boss }),
	} {
		if status.Code(s.Entry(e)) != codes.PermissionDenied {
			t.Errorf("%s is within the scope", what)
		}
	}
	if s.Node(spiffeid.RequireFromString("spiffe://a.org/spire/agent/tpm/1")) != nil || s.Node(spiffeid.RequireFromString("spiffe://a.org/spire/agent/x509pop/1")) == nil {
		t.Error("nodes")
	}
	if s.TrustDomain(spiffeid.RequireTrustDomainFromString("b.org")) != nil || s.TrustDomain(spiffeid.RequireTrustDomainFromString("c.org")) == nil {
		t.Error("trust domains")
	}
	nothing := Scope{roles: []*Role{{Name: "n"}}, privileged: func(spiffeid.ID) bool { return false }}
	if nothing.Entry(entry(nil)) == nil || nothing.Entry(&selectors.Entry{}) == nil || nothing.Node(boss) == nil || nothing.TrustDomain(boss.TrustDomain()) == nil || nothing.All() {
		t.Error("a role without bounds allows something")
	}
	if !(Scope{}).All() || (Scope{}).Entry(entry(nil)) != nil {
		t.Error("who needs no role is bounded")
	}
}

// TestForeignersAndRoles: the configuration lets holders of SVIDs of other trust domains in, as long as
// their bundle is known, and a role allows what its verbs say.
func TestForeignersAndRoles(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	elsewhere := spiffeid.RequireTrustDomainFromString("elsewhere.org")
	s := open(t, a, time.Now, func(s *site) {
		s.foreign = map[spiffeid.TrustDomain][]*x509.Certificate{elsewhere: {other.cert}}
		s.roles = []*Role{{Name: "r", IDs: patterns(t, "spiffe://elsewhere.org/ops/*", workloadID), Verbs: []string{"node.read"}}}
	})
	defer s.stop()
	for _, c := range []struct {
		who                      string
		authority                *authority
		id                       string
		list, nest, renew, write codes.Code
	}{
		{"a foreign admin", other, foreignAdminID, codes.OK, codes.PermissionDenied, codes.PermissionDenied, codes.OK},
		{"a foreign holder of a role", other, "spiffe://elsewhere.org/ops/x", codes.OK, codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied},
		{"a holder of a role", a, workloadID, codes.OK, codes.PermissionDenied, codes.PermissionDenied, codes.PermissionDenied},
		{"another foreigner", other, "spiffe://elsewhere.org/x", codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.Unavailable},
		{"a foreign admin by our authority", a, foreignAdminID, codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.Unavailable},
		{"our node by a foreign authority", other, nodeID, codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.Unavailable},
	} {
		conn := s.overTLS(t, c.authority.svid(t, c.id, time.Hour))
		for method, want := range map[string]codes.Code{list: c.list, nest: c.nest, renew: c.renew, write: c.write} {
			if got := s.call(t, conn, method); got != want {
				t.Errorf("%s calls %s: %v, want %v", c.who, method, got, want)
			}
		}
	}
	if logs := s.logs.String(); !strings.Contains(logs, "request_id=") || !strings.Contains(logs, "caller="+foreignAdminID) {
		t.Errorf("the log does not name calls and callers: %s", logs)
	}
}

// TestLimits: who calls too often waits; who can not wait is refused at once; others go on.
func TestLimits(t *testing.T) {
	a := newAuthority(t)
	s := open(t, a, time.Now, func(s *site) { s.limits = Limits{Attestations: 2, Signatures: 1} })
	defer s.stop()
	began := time.Now()
	conn := s.overTLS(t, nil)
	for range 4 {
		if got := s.call(t, conn, attest); got != codes.OK {
			t.Errorf("attestation: %v", got)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("four attestations at two per second took %v", took)
	}
	node := s.overTLS(t, a.svid(t, nodeID, time.Hour))
	if got := s.call(t, node, renew); got != codes.OK {
		t.Errorf("the first: %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began = time.Now()
	err := node.Invoke(ctx, renew, &emptypb.Empty{}, &emptypb.Empty{})
	if status.Code(err) != codes.ResourceExhausted || time.Since(began) > 250*time.Millisecond {
		t.Errorf("with a deadline that is too near: %v after %v", err, time.Since(began))
	}
	if got := s.call(t, s.overTLS(t, a.svid(t, downstreamID, time.Hour)), nest); got != codes.OK {
		t.Errorf("another caller: %v", got)
	}
}

func TestBucketsAreForgotten(t *testing.T) {
	now := time.Now()
	b := newBuckets(5, func() time.Time { return now })
	for i := range 5000 {
		if err := b.wait(t.Context(), string(rune(i)), 1); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 999 {
			now = now.Add(time.Second)
		}
	}
	if n := len(b.of); n > 3000 {
		t.Errorf("%d buckets", n)
	}
	if err := b.wait(t.Context(), "x", 6); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("more than the burst: %v", err)
	}
}

func TestNeighbourhood(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:7": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::", "[fe80::1%eth0]:7": "fe80::", "pipe": "pipe",
	} {
		if got := neighbourhood(addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
