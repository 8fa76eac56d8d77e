// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodepb "github.com/assay-id/assay/proto/node"
)

// pollInterval and its jitter of a tenth are those of SPIRE's agent; pollTimeout bounds one poll.
const (
	pollInterval = 5 * time.Second
	pollTimeout  = 30 * time.Second
)

// poll asks a server of SPIRE's for entries and bundle in turn, until that fails.
func (c *Client) poll(ctx context.Context, conn *grpc.ClientConn, back *backoff) error {
	for {
		if err := c.pollOnce(ctx, conn); err != nil {
			return verdict(err)
		}
		back.reset()
		c.connected.Store(true)
		sleep(ctx, pollInterval*9/10+rand.N(pollInterval/5))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (c *Client) pollOnce(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	bundle, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return err
	}
	entries, err := entryv1.NewEntryClient(conn).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{}, grpc.MaxCallRecvMsgSize(maxFeedMessage))
	if err != nil {
		return err
	}
	return c.deliver(&nodepb.WatchResponse{Full: true, Entries: entries.Entries, Bundle: bundle})
}

// signBySPIRE has a server of SPIRE's sign: it takes the agent's word that the workload is the entry's.
func signBySPIRE(ctx context.Context, conn *grpc.ClientConn, entryID string, csr []byte) ([]*x509.Certificate, error) {
	resp, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entryID, Csr: csr}},
	})
	if err == nil && len(resp.Results) != 1 {
		return nil, fmt.Errorf("ask the server to sign: it gave %d answers to one question", len(resp.Results))
	}
	if err == nil {
		st := resp.Results[0].GetStatus()
		err = status.Error(codes.Code(st.GetCode()), st.GetMessage())
	}
	if err != nil {
		return nil, signingError(err)
	}
	return parseChain(resp.Results[0].GetSvid().GetCertChain())
}
