// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/assay-id/assay/proto/x509pop"
)

// Node is an attested agent's identity.
type Node struct {
	ID   *types.SPIFFEID
	Cert *tls.Certificate // with its leaf parsed
}

// Dial connects to a server as an agent with the certificate does, or as one without if it is nil.
// The server must prove by the roots, which are asked at each handshake, that it is the trust domain's.
func Dial(address string, cert *tls.Certificate, roots func() *x509bundle.Bundle) (*grpc.ClientConn, error) {
	conf := &tls.Config{
		InsecureSkipVerify: true, // the name is a SPIFFE ID, checked here
		NextProtos:         []string{"h2"},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			id, _, err := x509svid.ParseAndVerify(raw, roots())
			if err == nil && id.String() != "spiffe://"+TrustDomain+"/spire/server" {
				err = fmt.Errorf("the server is %s", id)
			}
			return err
		},
	}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	// 10,000 of these are in one process; a server that is gone is found out even if nothing says so.
	return grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithWriteBufferSize(4096), grpc.WithReadBufferSize(1024))
}

// Roots are the X.509 authorities of a bundle.
func Roots(b *types.Bundle) (*x509bundle.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain)
	if err != nil {
		return nil, err
	}
	out := x509bundle.New(td)
	for _, a := range b.X509Authorities {
		certs, err := x509.ParseCertificates(a.Asn1)
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			out.AddX509Authority(c)
		}
	}
	return out, nil
}

// NewKey makes a P-256 key.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// CSR asks for an SVID for the key.
func CSR(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// NewToken has the server make a join token.
func NewToken(ctx context.Context, admin grpc.ClientConnInterface, alias *types.SPIFFEID) (string, error) {
	t, err := agentv1.NewAgentClient(admin).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600, AgentId: alias})
	return t.GetValue(), err
}

// Join attests by a join token.
func Join(ctx context.Context, conn grpc.ClientConnInterface, token string) (*Node, error) {
	return attest(ctx, conn, "join_token", []byte(token), nil)
}

// Prove attests by x509pop.
func Prove(ctx context.Context, conn grpc.ClientConnInterface, device *tls.Certificate) (*Node, error) {
	payload, err := json.Marshal(x509pop.Payload{Certificates: device.Certificate})
	if err != nil {
		return nil, err
	}
	return attest(ctx, conn, x509pop.Type, payload, func(challenge []byte) ([]byte, error) {
		c, err := x509pop.Decode[x509pop.Challenge](challenge)
		if err != nil {
			return nil, err
		}
		r, err := x509pop.Respond(device.PrivateKey.(*ecdsa.PrivateKey), c, rand.Reader)
		if err != nil {
			return nil, err
		}
		return json.Marshal(r)
	})
}

// attest runs the stream of AttestAgent; answer is of the challenge, if one is expected.
func attest(ctx context.Context, conn grpc.ClientConnInterface, kind string, payload []byte, answer func([]byte) ([]byte, error)) (*Node, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := CSR(key)
	if err != nil {
		return nil, err
	}
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: kind, Payload: payload}, Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}}) // Recv says why it failed
	resp, err := stream.Recv()
	if err == nil && answer != nil {
		var response []byte
		if response, err = answer(resp.GetChallenge()); err != nil {
			return nil, err
		}
		_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: response}})
		resp, err = stream.Recv()
	}
	if err != nil {
		return nil, err
	}
	return newNode(resp.GetResult().GetSvid(), key)
}

// Renew has the server sign the node's next SVID.
func Renew(ctx context.Context, conn grpc.ClientConnInterface) (*Node, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := CSR(key)
	if err != nil {
		return nil, err
	}
	resp, err := agentv1.NewAgentClient(conn).RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
	if err != nil {
		return nil, err
	}
	return newNode(resp.Svid, key)
}

func newNode(svid *types.X509SVID, key *ecdsa.PrivateKey) (*Node, error) {
	if len(svid.GetCertChain()) == 0 {
		return nil, fmt.Errorf("the server's answer has no SVID")
	}
	leaf, err := x509.ParseCertificate(svid.CertChain[0])
	if err != nil {
		return nil, err
	}
	return &Node{svid.Id, &tls.Certificate{Certificate: svid.CertChain, PrivateKey: key, Leaf: leaf}}, nil
}
