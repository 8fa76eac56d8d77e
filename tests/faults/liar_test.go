// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	nodepb "github.com/assay-id/assay/proto/node"
)

// liar is a server of the agent's side of the API that can be made to lie. Its identity is genuine.
type liar struct {
	agentv1.UnimplementedAgentServer
	bundlev1.UnimplementedBundleServer
	nodepb.UnimplementedNodeServer

	t         *testing.T
	addr      string
	ca, wrong *authority
	nodeLies  []func(*leaf) // one for each of the first attestations
	feed      chan *nodepb.WatchResponse
	opened    chan struct{} // receives when a feed is open
	mu        sync.Mutex
	lie       any // func(*leaf) or func(*token); nil: the truth
	revision  int64
	entry     *types.Entry
	attested  int
	sequence  uint64
	serial    int64
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// leaf and token are what is signed, before a lie is put into it.
type leaf struct {
	tmpl *x509.Certificate
	key  crypto.PublicKey
	by   *authority
	raw  func([][]byte) [][]byte
}

type token struct {
	claims map[string]any
	kid    string
	key    any
	alg    jose.SignatureAlgorithm
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{spiffe("")}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func spiffe(path string) *url.URL { return &url.URL{Scheme: "spiffe", Host: "example.org", Path: path} }

// startLiar returns it when it listens.
func startLiar(t *testing.T, nodeLies ...func(*leaf)) *liar {
	t.Helper()
	l := &liar{t: t, ca: newAuthority(t), wrong: newAuthority(t), nodeLies: nodeLies, feed: make(chan *nodepb.WatchResponse), opened: make(chan struct{}, 100), sequence: 5, revision: 100}
	key := newKey(t)
	chain, err := l.sign(&leaf{tmpl: l.template("/spire/server"), key: key.Public(), by: l.ca}, nil)
	if err != nil {
		t.Fatal(err)
	}
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.addr = at.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}})))
	agentv1.RegisterAgentServer(g, l)
	bundlev1.RegisterBundleServer(g, l)
	nodepb.RegisterNodeServer(g, l)
	done := make(chan error, 1)
	go func() { done <- g.Serve(at) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

// pem is the bundle that the agent starts with.
func (l *liar) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.ca.cert.Raw}))
}

func (l *liar) template(path string) *x509.Certificate {
	return &x509.Certificate{NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{spiffe(path)}}
}

func (l *liar) sign(x *leaf, lie func(*leaf)) ([][]byte, error) {
	if lie != nil {
		lie(x)
	}
	l.mu.Lock()
	l.serial++
	x.tmpl.SerialNumber = big.NewInt(l.serial)
	l.mu.Unlock()
	der, err := x509.CreateCertificate(rand.Reader, x.tmpl, x.by.cert, x.key, x.by.key)
	chain := [][]byte{der}
	if x.raw != nil {
		chain = x.raw(chain)
	}
	return chain, err
}

func (l *liar) lies(lie any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = lie
}

// signCSR signs what somebody else made, with the lie of the moment if it is about certificates.
func (l *liar) signCSR(der []byte, path string, lie func(*leaf)) (*types.X509SVID, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	chain, err := l.sign(&leaf{tmpl: l.template(path), key: csr.PublicKey, by: l.ca}, lie)
	return &types.X509SVID{CertChain: chain, Id: &types.SPIFFEID{TrustDomain: "example.org", Path: path}}, err
}

const nodePath = "/spire/agent/join_token/x"

func (l *liar) AttestAgent(st agentv1.Agent_AttestAgentServer) error {
	m, err := st.Recv()
	if err != nil {
		return err
	}
	l.mu.Lock()
	var lie func(*leaf)
	if l.attested < len(l.nodeLies) {
		lie = l.nodeLies[l.attested]
	}
	l.attested++
	l.mu.Unlock()
	svid, err := l.signCSR(m.GetParams().Params.Csr, nodePath, lie)
	if err != nil {
		return err
	}
	return st.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: &agentv1.AttestAgentResponse_Result{Svid: svid, Reattestable: true}}})
}

func (l *liar) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	return l.bundle(), nil
}

func (l *liar) bundle() *types.Bundle {
	public, err := x509.MarshalPKIXPublicKey(l.ca.key.Public())
	if err != nil {
		l.t.Error(err)
	}
	return &types.Bundle{TrustDomain: "example.org", SequenceNumber: l.sequence, X509Authorities: []*types.X509Certificate{{Asn1: l.ca.cert.Raw}},
		JwtAuthorities: []*types.JWTKey{{KeyId: "jwt", PublicKey: public}}, WitAuthorities: []*types.WITKey{{KeyId: "wit", PublicKey: public}}}
}

// Watch begins with the truth and goes on with what the test says.
func (l *liar) Watch(st nodepb.Node_WatchServer) error {
	if _, err := st.Recv(); err != nil {
		return err
	}
	l.mu.Lock()
	first := &nodepb.WatchResponse{Full: true, Bundle: l.bundle(), Revision: l.revision}
	if l.entry != nil {
		first.Entries = []*types.Entry{l.entry}
	}
	l.mu.Unlock()
	if err := st.Send(first); err != nil {
		return err
	}
	l.opened <- struct{}{}
	for {
		select {
		case <-st.Context().Done():
			return st.Context().Err()
		case msg := <-l.feed:
			if err := st.Send(msg); err != nil {
				return err
			}
		}
	}
}

// identity replaces the only entry, by the feed.
func (l *liar) identity(name string) {
	l.t.Helper()
	l.mu.Lock()
	l.revision++
	msg := &nodepb.WatchResponse{Revision: l.revision}
	if l.entry != nil {
		msg.Removed = []string{l.entry.Id}
	}
	l.entry = &types.Entry{Id: name, SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/" + name}, ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: nodePath},
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}}}
	msg.Entries = []*types.Entry{l.entry}
	l.mu.Unlock()
	l.push(msg)
}

func (l *liar) push(msg *nodepb.WatchResponse) {
	l.t.Helper()
	select {
	case l.feed <- msg:
	case <-time.After(time.Minute):
		l.t.Fatal("no agent follows the feed")
	}
}

func (l *liar) path() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entry.SpiffeId.Path
}

func (l *liar) SignX509SVID(_ context.Context, req *nodepb.SignX509SVIDRequest) (*nodepb.SignX509SVIDResponse, error) {
	l.mu.Lock()
	lie, _ := l.lie.(func(*leaf))
	l.mu.Unlock()
	svid, err := l.signCSR(req.Csr, l.path(), lie)
	return &nodepb.SignX509SVIDResponse{Svid: svid}, err
}

func (l *liar) token(kid, typ string, claims map[string]any) (string, error) {
	now := time.Now()
	claims["sub"], claims["iat"], claims["exp"] = spiffe(l.path()).String(), now.Unix(), now.Add(time.Hour).Unix()
	x := &token{claims: claims, kid: kid, key: l.ca.key, alg: jose.ES256}
	l.mu.Lock()
	if lie, ok := l.lie.(func(*token)); ok {
		lie(x)
	}
	l.mu.Unlock()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: x.alg, Key: jose.JSONWebKey{Key: x.key, KeyID: x.kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", err
	}
	return jwt.Signed(s).Claims(x.claims).Serialize()
}

func (l *liar) SignJWTSVID(_ context.Context, req *nodepb.SignJWTSVIDRequest) (*nodepb.SignJWTSVIDResponse, error) {
	text, err := l.token("jwt", "JWT", map[string]any{"aud": req.Audience})
	return &nodepb.SignJWTSVIDResponse{Svid: &types.JWTSVID{Token: text}}, err
}

func (l *liar) SignWITSVID(_ context.Context, req *nodepb.SignWITSVIDRequest) (*nodepb.SignWITSVIDResponse, error) {
	key, err := x509.ParsePKIXPublicKey(req.PublicKey)
	if err != nil {
		return nil, err
	}
	text, err := l.token("wit", "wit+jwt", map[string]any{"cnf": map[string]any{"jwk": jose.JSONWebKey{Key: key, Algorithm: req.SigningAlgorithm}}})
	return &nodepb.SignWITSVIDResponse{Svid: &types.WITSVID{Token: text}}, err
}
