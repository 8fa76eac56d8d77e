// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/assay-id/assay/agent/upstream/wire"
	"github.com/assay-id/assay/tpm"
)

// attest runs one AttestAgent stream and fetches the bundle on the same connection
// (the order that SPIRE's agent keeps: research/spire-wire.md §2.1).
func (c *Client) attest(ctx context.Context) (*node, error) {
	tlsConf, err := c.serverTLS()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("dns:///"+c.cfg.ServerAddress, grpc.WithTransportCredentials(credentials.NewTLS(tlsConf)))
	if err != nil {
		return nil, fmt.Errorf("server address %q: %w", c.cfg.ServerAddress, err)
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
	result, err := c.attestStream(ctx, conn, payload, csr)
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

// postStatus tells the server the agent's version. Only a verdict on the node is an error: a
// server that does not take it can do the rest.
func (c *Client) postStatus(ctx context.Context, n *node, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	serial, _ := n.bundle.SequenceNumber() // 0 if it has none
	_, err := agentv1.NewAgentClient(conn).PostStatus(ctx, &agentv1.PostStatusRequest{CurrentBundleSerial: serial, AgentVersion: c.cfg.Version})
	if v := verdict(err); v != err {
		return v
	}
	if err != nil {
		c.cfg.Logger.Debug("the server did not take the agent's version", "error", err)
	}
	return nil
}

// serverTLS authenticates the server as the trust domain's /spire/server, by the bundle we
// have or the bootstrap bundle; the DNS name plays no part.
func (c *Client) serverTLS() (*tls.Config, error) {
	server, err := spiffeid.FromPath(c.cfg.TrustDomain, "/spire/server")
	if err != nil {
		return nil, fmt.Errorf("server ID: %w", err)
	}
	if b := c.trustBundle(); b != nil {
		return c.explained(tlsconfig.TLSClientConfig(b, tlsconfig.AuthorizeID(server))), nil
	}
	c.cfg.Logger.Warn("insecure_bootstrap: trusting whatever server answers, this once", "server", c.cfg.ServerAddress)
	return &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return fmt.Errorf("server certificate: %w", err)
		}
		if id, err := x509svid.IDFromCert(leaf); err != nil || id != server {
			return fmt.Errorf("server presents %q, want %q", id, server)
		}
		return nil
	}}, nil
}

// explained makes the refusal of a server's certificate say what to do.
func (c *Client) explained(conf *tls.Config) *tls.Config {
	verify := conf.VerifyPeerCertificate
	conf.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		if err := verify(raw, chains); err != nil {
			return fmt.Errorf("the server at %s is not one that this agent's bundle vouches for: correct server_address, or set trust_bundle_path to what `assay bundle show` prints on that server (%w)", c.cfg.ServerAddress, err)
		}
		return nil
	}
	return conf
}

func (c *Client) trustBundle() *spiffebundle.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node != nil {
		return c.node.bundle
	}
	return c.cfg.Bootstrap
}

// dialNode connects with the node's own SVID; its key may live in a TPM.
func (c *Client) dialNode(n *node) (*grpc.ClientConn, error) {
	server, err := spiffeid.FromPath(c.cfg.TrustDomain, "/spire/server")
	if err != nil {
		return nil, fmt.Errorf("server ID: %w", err)
	}
	conf := c.explained(tlsconfig.MTLSClientConfig(n.svid, n.bundle, tlsconfig.AuthorizeID(server)))
	conn, err := grpc.NewClient("dns:///"+c.cfg.ServerAddress, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		return nil, fmt.Errorf("server address %q: %w", c.cfg.ServerAddress, err)
	}
	return conn, nil
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
