// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/agent/upstream/wire"
	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
)

// signTimeout bounds one signing call, so that a server that hangs counts as one that is away.
const signTimeout = 10 * time.Second

// Refusal is the server's verdict on a signing request, as against a fault.
type Refusal struct{ Message string }

func (r *Refusal) Error() string { return "the server refused to sign: " + r.Message }

// Refused marks the error as a verdict for whoever must not know this package.
func (r *Refusal) Refused() bool { return true }

// Unsupported: this server signs no SVIDs of the kind.
type Unsupported struct{ Message string }

func (u *Unsupported) Error() string {
	return "the server does not sign this kind of SVID: " + u.Message
}

// Unsupported marks the error for whoever must not know this package.
func (u *Unsupported) Unsupported() bool { return true }

// signingError tells a verdict of the server from a fault.
func signingError(err error) error {
	switch text := status.Convert(err).Message(); status.Code(err) {
	case codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument, codes.PermissionDenied:
		return &Refusal{text}
	case codes.Unimplemented:
		return &Unsupported{text}
	}
	return fmt.Errorf("ask the server to sign: %w", err)
}

// signed asks on the agent's connection: our servers on evidence; servers of SPIRE's, which take the
// agent's word that the workload is the entry's.
func signed[R any](ctx context.Context, c *Client, ours func(context.Context, nodepb.NodeClient) (R, error), spires func(context.Context, svidv1.SVIDClient) (R, error)) (R, error) {
	var none R
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return none, errors.New("the agent has no connection to the server yet")
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	ask := func() (R, error) {
		if c.spire.Load() {
			return spires(ctx, svidv1.NewSVIDClient(conn))
		}
		return ours(ctx, nodepb.NewNodeClient(conn))
	}
	svid, err := ask()
	if wait, ok := bidden(ctx, err); ok {
		select {
		case <-time.After(wait):
			svid, err = ask()
		case <-ctx.Done():
		}
	}
	if caller.Err() == nil {
		c.answered(status.Code(err) != codes.DeadlineExceeded)
	}
	if err != nil {
		return none, signingError(err)
	}
	return svid, nil
}

// bidden reports how long a server that has too much to sign bids the agent to wait, if there is time for that.
func bidden(ctx context.Context, err error) (time.Duration, bool) {
	if status.Code(err) != codes.ResourceExhausted {
		return 0, false
	}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			wait, until := info.GetRetryDelay().AsDuration(), signTimeout
			if end, ok := ctx.Deadline(); ok {
				until = time.Until(end)
			}
			return wait, wait > 0 && wait < until
		}
	}
	return 0, false
}

// SignX509SVID has the server sign a workload's key on the given facts, for the process of the facts only if perProcess. A
// verdict of the server is a *Refusal.
func (c *Client) SignX509SVID(ctx context.Context, entry *selectors.Entry, csr []byte, facts *selectors.Facts) (chain []*x509.Certificate, perProcess bool, err error) {
	svid, err := signed(ctx, c, func(ctx context.Context, n nodepb.NodeClient) (*types.X509SVID, error) {
		r, err := n.SignX509SVID(ctx, &nodepb.SignX509SVIDRequest{EntryId: entry.ID, EntryRevision: entry.Revision, Csr: csr, Facts: wire.Facts(facts)})
		perProcess = r.GetPerProcess()
		return r.GetSvid(), err
	}, func(ctx context.Context, s svidv1.SVIDClient) (*types.X509SVID, error) {
		r, err := s.BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: entry.ID, Csr: csr}}})
		return only(r.GetResults(), err)
	})
	if err != nil {
		return nil, false, err
	}
	if chain, err = wire.Chain(svid.GetCertChain()); err != nil {
		return nil, false, err
	}
	if err := c.believeX509(chain, entry.SPIFFEID, csr); err != nil {
		return nil, false, err
	}
	return chain, perProcess, nil
}

// SignJWTSVID has the server sign a JWT-SVID for the audience. Errors: see SignX509SVID, and *Unsupported.
func (c *Client) SignJWTSVID(ctx context.Context, entry *selectors.Entry, audience []string, facts *selectors.Facts) (trust.Token, error) {
	svid, err := signed(ctx, c, func(ctx context.Context, n nodepb.NodeClient) (*types.JWTSVID, error) {
		r, err := n.SignJWTSVID(ctx, &nodepb.SignJWTSVIDRequest{EntryId: entry.ID, EntryRevision: entry.Revision, Audience: audience, Facts: wire.Facts(facts)})
		return r.GetSvid(), err
	}, func(ctx context.Context, s svidv1.SVIDClient) (*types.JWTSVID, error) {
		r, err := s.NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: entry.ID, Audience: audience})
		return r.GetSvid(), err
	})
	if err != nil {
		return trust.Token{}, err
	}
	token, err := trust.ReadToken(svid.GetToken(), entry.SPIFFEID)
	if err != nil {
		return trust.Token{}, err
	}
	return token, c.believeJWT(token, audience)
}

// SignWITSVID has the server sign a WIT-SVID for the workload's public key, PKIX DER, which signs with the
// JWS algorithm. Errors: see SignJWTSVID.
func (c *Client) SignWITSVID(ctx context.Context, entry *selectors.Entry, publicKey []byte, algorithm string, facts *selectors.Facts) (trust.Token, error) {
	perProcess := false
	svid, err := signed(ctx, c, func(ctx context.Context, n nodepb.NodeClient) (*types.WITSVID, error) {
		r, err := n.SignWITSVID(ctx, &nodepb.SignWITSVIDRequest{EntryId: entry.ID, EntryRevision: entry.Revision, PublicKey: publicKey, SigningAlgorithm: algorithm, Facts: wire.Facts(facts)})
		perProcess = r.GetPerProcess()
		return r.GetSvid(), err
	}, func(ctx context.Context, s svidv1.SVIDClient) (*types.WITSVID, error) {
		r, err := s.BatchNewWITSVID(ctx, &svidv1.BatchNewWITSVIDRequest{Params: []*svidv1.NewWITSVIDParams{{EntryId: entry.ID, PublicKey: publicKey, SigningAlgorithm: algorithm}}})
		return only(r.GetResults(), err)
	})
	if err != nil {
		return trust.Token{}, err
	}
	token, err := trust.ReadToken(svid.GetToken(), entry.SPIFFEID)
	if err != nil {
		return trust.Token{}, err
	}
	token.PerProcess = perProcess
	return token, c.believeWIT(token, publicKey)
}

// only returns the one result of a batch of one.
func only[S any, R interface {
	GetStatus() *types.Status
	GetSvid() S
}](results []R, err error) (S, error) {
	var none S
	switch {
	case err != nil:
		return none, err
	case len(results) != 1:
		return none, fmt.Errorf("it gave %d answers to one question", len(results))
	}
	if st := results[0].GetStatus(); st.GetCode() != int32(codes.OK) {
		return none, status.Error(codes.Code(st.GetCode()), st.GetMessage())
	}
	return results[0].GetSvid(), nil
}

// RevokeSVID has the server revoke an X.509-SVID that was signed for this node: leaf is its certificate, DER; reason is of
// RFC 5280, section 5.3.1 (1: keyCompromise), why a sentence for people. The feed then brings a list that has it, so
// that it is signed anew for those who are still entitled to it. A verdict of the server is a *Refusal; a server of
// SPIRE's revokes nothing (*Unsupported).
func (c *Client) RevokeSVID(ctx context.Context, leaf []byte, reason int, why string) error {
	_, err := signed(ctx, c, func(ctx context.Context, n nodepb.NodeClient) (*nodepb.RevokeSVIDResponse, error) {
		return n.RevokeSVID(ctx, &nodepb.RevokeSVIDRequest{Certificate: leaf, Reason: int32(reason), Why: why})
	}, func(context.Context, svidv1.SVIDClient) (*nodepb.RevokeSVIDResponse, error) {
		return nil, status.Error(codes.Unimplemented, "servers of SPIRE's revoke no SVIDs")
	})
	return err
}
