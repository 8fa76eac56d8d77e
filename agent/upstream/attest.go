// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/servers"
	"github.com/assay-id/assay/agent/upstream/wire"
	"github.com/assay-id/assay/tpm"
)

// attest runs one AttestAgent stream and fetches the bundle on the same connection
// (the order that SPIRE's agent keeps: research/spire-wire.md §2.1). The server is authenticated by the bundle; nil trusts it.
func (c *Client) attest(ctx context.Context, by *spiffebundle.Bundle) (*node, error) {
	c.tell(c.life.Take(life.Attest), "attest")
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	tlsConf, err := c.serverTLS(by)
	if err != nil {
		return nil, err
	}
	conn, err := c.cfg.Servers.Dial(credentials.NewTLS(tlsConf))
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	payload, key, err := c.cfg.Attestor.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare %s attestation: %w", c.cfg.Attestor.Type(), err)
	}
	csr, err := nodeCSR(key)
	if err != nil {
		return nil, err
	}
	result, err := c.attestStream(ctx, conn.ClientConn, payload, csr)
	if err != nil {
		return nil, admission(c.cfg.Attestor.Type(), err)
	}
	svid, err := wire.SVID(result.GetSvid(), key)
	if err != nil {
		return nil, err
	}
	pb, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, fmt.Errorf("fetch bundle: %w", err)
	}
	bundle, err := wire.OwnBundle(c.cfg.TrustDomain, pb)
	if err != nil {
		return nil, err
	}
	n := &node{svid: svid, bundle: bundle.SPIFFE(), reattestable: result.GetReattestable()}
	return n, c.believeNode(svid, n.bundle)
}

func (c *Client) attestStream(ctx context.Context, conn *grpc.ClientConn, payload, csr []byte) (*agentv1.AttestAgentResponse_Result, error) {
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		c.reached(stream.Context(), nil)
		c.cfg.Servers.Prefer(c.server) // it knows of the attestation first
	}()
	msg := &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: c.cfg.Attestor.Type(), Payload: payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}}
	for {
		// A send that fails with EOF has its reason in Recv.
		if err := stream.Send(msg); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if result := resp.GetResult(); result != nil {
			return result, stream.CloseSend()
		}
		answer, err := c.cfg.Attestor.Answer(ctx, resp.GetChallenge(), channelBinding(stream.Context()))
		if err != nil {
			return nil, fmt.Errorf("answer the server's %s challenge: %w", c.cfg.Attestor.Type(), err)
		}
		msg = &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: answer}}
	}
}

// attestTimeout bounds an attestation, of which slow TPMs take most.
const attestTimeout = 3 * time.Minute

// reached notes which server a call went to, and has the connection stay there.
func (c *Client) reached(call context.Context, conn *servers.Conn) {
	if p, ok := peer.FromContext(call); ok && p.Addr != nil {
		c.server = p.Addr.String()
		if conn != nil {
			conn.Pin(c.server)
		}
	}
}

// channelBinding is the connection's own value (RFC 9266, tls-exporter), which a man in the middle
// does not have twice. ctx is that of a stream which received something. nil if there is none.
func channelBinding(ctx context.Context) []byte {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if b, err := info.State.ExportKeyingMaterial(tpm.BindingLabel, nil, tpm.BindingSize); err == nil {
				return b
			}
		}
	}
	return nil
}

func (c *Client) renewAgent(ctx context.Context, n *node, conn *grpc.ClientConn) (*node, error) {
	csr, err := nodeCSR(n.svid.PrivateKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	resp, err := agentv1.NewAgentClient(conn).RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
	if err != nil {
		return nil, verdict(err)
	}
	svid, err := wire.SVID(resp.GetSvid(), n.svid.PrivateKey)
	if err != nil {
		return nil, err
	}
	if svid.ID != n.svid.ID {
		return nil, fmt.Errorf("server renewed the node's SVID as %q, it was %q", svid.ID, n.svid.ID)
	}
	return &node{svid: svid, bundle: n.bundle}, c.believeNode(svid, n.bundle)
}

// statusTimeout bounds what is only for the operator's eyes.
const statusTimeout = 5 * time.Second

// postStatus tells the server the agent's version; the connection is that server's from then on. Only a verdict on
// the node is an error: a server that does not take it can do the rest.
func (c *Client) postStatus(ctx context.Context, n *node, conn *servers.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	serial, _ := n.bundle.SequenceNumber() // 0 if it has none
	var p peer.Peer
	_, err := agentv1.NewAgentClient(conn).PostStatus(ctx, &agentv1.PostStatusRequest{CurrentBundleSerial: serial, AgentVersion: c.cfg.Version}, grpc.Peer(&p))
	if p.Addr != nil {
		c.reached(peer.NewContext(ctx, &p), conn)
	}
	if v := verdict(err); v != err {
		return v
	}
	if err != nil {
		c.cfg.Logger.Debug("the server did not take the agent's version", "error", err)
	}
	return nil
}

func nodeCSR(key crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		Subject:            pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("sign CSR with the node's key: %w", err)
	}
	return csr, nil
}
