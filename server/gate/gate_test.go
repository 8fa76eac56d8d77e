// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestTable(t *testing.T) {
	for method, who := range permissions {
		if who&anyone != 0 && method != attest && method != "/spire.api.server.bundle.v1.Bundle/GetBundle" {
			t.Errorf("%s is open to anyone", method)
		}
	}
	for method := range verbs {
		if permissions[method]&operators != operators {
			t.Errorf("a role may allow %s, which is not the operators' own", method)
		}
	}
}

// One method of each kind, and one without a line in the table.
const (
	attest   = "/spire.api.server.agent.v1.Agent/AttestAgent"
	renew    = "/spire.api.server.agent.v1.Agent/RenewAgent"
	list     = "/spire.api.server.agent.v1.Agent/ListAgents"
	nest     = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
	info     = "/spire.api.server.debug.v1.Debug/GetInfo"
	unlisted = "/spire.api.server.agent.v1.Agent/Unlisted"
	write    = "/spire.api.server.agent.v1.Agent/BanAgent"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	tmpl.NotBefore, tmpl.Subject = time.Now().Add(-time.Hour), pkix.Name{CommonName: "x"}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newAuthority(t *testing.T) *authority {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{td.ID().URL()}}
	k := newKey(t)
	return &authority{sign(t, tmpl, tmpl, &k.PublicKey, k), k}
}

func (a *authority) svid(t *testing.T, id string, ttl time.Duration) *tls.Certificate {
	k := newKey(t)
	cert := sign(t, &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(ttl), KeyUsage: x509.KeyUsageDigitalSignature,
		URIs: []*url.URL{spiffeid.RequireFromString(id).URL()}}, a.cert, &k.PublicKey, a.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: k}
}

// site is an open gate; each method of a kind answers, and notes who called.
type site struct {
	tcp, unix string
	called    Caller
	binding   []byte
	stopped   int
	revoked   atomic.Bool // whatever anybody holds
	foreign   map[spiffeid.TrustDomain][]*x509.Certificate
	roles     []*Role
	limits    Limits
	logs      lockedBuffer
	stop      func() error
}

// The registration entries and nodes of the site.
const (
	adminID, downstreamID, workloadID = "spiffe://example.org/admin", "spiffe://example.org/below", "spiffe://example.org/w"
	nodeID                            = "spiffe://example.org/spire/agent/x/1"
	foreignAdminID                    = "spiffe://elsewhere.org/admin"
)

func open(t *testing.T, a *authority, now func() time.Time, opts ...func(*site)) *site {
	s := &site{}
	for _, o := range opts {
		o(s)
	}
	own := a.svid(t, "spiffe://example.org/spire/server", time.Hour)
	g := New(Config{
		TrustDomain: td, Authorities: func(of spiffeid.TrustDomain) []*x509.Certificate {
			if of == td {
				return []*x509.Certificate{a.cert}
			}
			return s.foreign[of]
		},
		AdminIDs: []spiffeid.ID{spiffeid.RequireFromString(foreignAdminID)}, Scoped: s.roles, Limits: s.limits, Weight: func(any) int { return 1 }, Logger: slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		ServerSVID: func() (*tls.Certificate, error) { return own, nil },
		Roles: func(id spiffeid.ID) (admin, downstream bool) {
			return id.String() == adminID, id.String() == downstreamID
		},
		Admitted: func(_ context.Context, c Caller, denied error) error {
			if c.ID.String() == nodeID && c.Cert.SerialNumber.Int64() == 7 {
				return nil
			}
			return denied
		},
		Revoked:  func(*x509.Certificate) bool { return s.revoked.Load() },
		Stopping: func() { s.stopped++ }, Now: now,
	}, s.register)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.tcp, s.unix = tcp.Addr().String(), filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", s.unix)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, tcp, unix) }()
	s.stop = func() error { cancel(); return <-done }
	return s
}

// register serves the methods of each kind on both listeners: the gate has to tell them apart.
func (s *site) register(tcp, unix grpc.ServiceRegistrar) {
	services := map[string]*grpc.ServiceDesc{}
	for _, method := range []string{attest, renew, list, nest, info, write, unlisted} {
		i := strings.LastIndex(method, "/")
		d := services[method[1:i]]
		if d == nil {
			d = &grpc.ServiceDesc{ServiceName: method[1:i], HandlerType: (*any)(nil)}
			services[d.ServiceName] = d
		}
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: method[i+1:], Handler: func(srv any, ctx context.Context, read func(any) error, guard grpc.UnaryServerInterceptor) (any, error) {
			req := &emptypb.Empty{}
			if err := read(req); err != nil {
				return nil, err
			}
			return guard(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
				s.called, s.binding = CallerOf(ctx), ChannelBinding(ctx)
				return &emptypb.Empty{}, nil
			})
		}})
	}
	for _, d := range services {
		tcp.RegisterService(d, s)
		unix.RegisterService(d, s)
	}
}

func (s *site) call(t *testing.T, conn *grpc.ClientConn, method string, opts ...grpc.CallOption) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s.called = Caller{}
	err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}, opts...)
	if status.Code(err) == codes.PermissionDenied && !strings.Contains(err.Error(), "authorization denied for method "+method) {
		t.Errorf("%s: not SPIRE's text: %v", method, err)
	}
	return status.Code(err)
}

func dial(t *testing.T, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *site) overTLS(t *testing.T, svid *tls.Certificate) *grpc.ClientConn {
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if svid != nil {
		conf.Certificates = []tls.Certificate{*svid}
	}
	return dial(t, s.tcp, credentials.NewTLS(conf))
}

func TestWhoMayCallWhat(t *testing.T) {
	a := newAuthority(t)
	s := open(t, a, time.Now)
	const yes, no = codes.OK, codes.PermissionDenied
	for _, c := range []struct {
		who                                    string
		conn                                   *grpc.ClientConn
		attest, renew, list, nest, info, other codes.Code
	}{
		{"nobody", s.overTLS(t, nil), yes, no, no, no, no, no},
		{"a workload", s.overTLS(t, a.svid(t, workloadID, time.Hour)), yes, no, no, no, no, no},
		{"a node", s.overTLS(t, a.svid(t, nodeID, time.Hour)), yes, yes, no, no, no, no},
		{"an admin", s.overTLS(t, a.svid(t, adminID, time.Hour)), yes, no, yes, no, no, no},
		{"a server below", s.overTLS(t, a.svid(t, downstreamID, time.Hour)), yes, no, no, yes, no, no},
		{"an operator", dial(t, "unix:"+s.unix, insecure.NewCredentials()), yes, no, yes, no, yes, no},
	} {
		for method, want := range map[string]codes.Code{attest: c.attest, renew: c.renew, list: c.list, nest: c.nest, info: c.info, unlisted: c.other} {
			if got := s.call(t, c.conn, method); got != want {
				t.Errorf("%s calls %s: %v, want %v", c.who, method, got, want)
			}
		}
	}
	if err := s.stop(); err != nil || s.stopped != 1 {
		t.Errorf("the gate closed with %v, Stopping was called %d times", err, s.stopped)
	}
}

// TestCaller: services learn who called, under what name records have him, and by which connection.
func TestCaller(t *testing.T) {
	a := newAuthority(t)
	s := open(t, a, time.Now)
	defer s.stop()
	svid := a.svid(t, adminID, time.Hour)
	var p peer.Peer
	s.call(t, s.overTLS(t, svid), list, grpc.Peer(&p))
	if c := s.called; c.ID.String() != adminID || !bytes.Equal(c.Cert.Raw, svid.Certificate[0]) || c.Operator() != "operator "+adminID {
		t.Errorf("over TLS: %+v, %q", c, c.Operator())
	}
	state := p.AuthInfo.(credentials.TLSInfo).State
	ours, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil || !bytes.Equal(ours, s.binding) {
		t.Errorf("bindings %x and %x, %v", ours, s.binding, err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s.call(t, dial(t, "unix:"+s.unix, insecure.NewCredentials()), list)
	if c := s.called; !c.ID.IsZero() || c.Cert != nil || c.Operator() != "operator "+me.Username || s.binding != nil {
		t.Errorf("over the socket: %+v, %q, binding %x", c, c.Operator(), s.binding)
	}
}

// TestStrangers do not even finish the handshake: what they present must be an SVID of ours.
func TestStrangers(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	s := open(t, a, time.Now)
	defer s.stop()
	for what, svid := range map[string]*tls.Certificate{
		"of another authority":    other.svid(t, nodeID, time.Hour),
		"of another trust domain": a.svid(t, "spiffe://elsewhere.org/spire/agent/x/1", time.Hour),
		"that has expired":        a.svid(t, nodeID, -time.Minute),
	} {
		if got := s.call(t, s.overTLS(t, svid), attest); got != codes.Unavailable {
			t.Errorf("with an SVID %s: %v", what, got)
		}
	}
}

// TestRevoked: who holds a revoked SVID is nobody, on a connection that is open already, too.
func TestRevoked(t *testing.T) {
	a := newAuthority(t)
	reader := &Role{Name: "reader", Verbs: []string{"node.read"}}
	id, err := ParsePattern(workloadID)
	if err != nil {
		t.Fatal(err)
	}
	reader.IDs = []Pattern{id}
	s := open(t, a, time.Now, func(s *site) { s.roles = []*Role{reader} })
	defer s.stop()
	holders := map[string]*grpc.ClientConn{"admin": s.overTLS(t, a.svid(t, adminID, time.Hour)), "role": s.overTLS(t, a.svid(t, workloadID, time.Hour))}
	for _, step := range []struct {
		revoked bool
		want    codes.Code
	}{{false, codes.OK}, {true, codes.PermissionDenied}, {false, codes.OK}} {
		s.revoked.Store(step.revoked)
		for name, conn := range holders {
			if got := s.call(t, conn, list); got != step.want {
				t.Errorf("%s, revoked %t: %v, want %v", name, step.revoked, got, step.want)
			}
		}
	}
}

// TestOutlived: a role ends with the SVID, though the connection goes on.
func TestOutlived(t *testing.T) {
	a := newAuthority(t)
	var later atomic.Int64
	s := open(t, a, func() time.Time { return time.Now().Add(time.Duration(later.Load())) })
	defer s.stop()
	conn := s.overTLS(t, a.svid(t, adminID, time.Hour))
	if got := s.call(t, conn, list); got != codes.OK {
		t.Errorf("at first: %v", got)
	}
	later.Store(int64(2 * time.Hour))
	if got := s.call(t, conn, list); got != codes.PermissionDenied {
		t.Errorf("after the SVID's end: %v", got)
	}
}
