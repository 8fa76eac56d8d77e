// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"math/rand/v2"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// pollInterval and its jitter of a tenth are those of SPIRE's agent; pollTimeout bounds one poll.
const (
	pollInterval = 5 * time.Second
	pollTimeout  = 30 * time.Second
)

// spireLacks is what agents lose at a server of SPIRE's.
var spireLacks = []string{
	"entries and bundles are polled every " + pollInterval.String() + ", and no acknowledgement delays the use of a new authority",
	"the server signs on this agent's word, without evidence about the process",
	"the server asks for no quotes between attestations",
	"there are no revocation lists",
}

// poll asks a server of SPIRE's for bundle, entries and the bundles that these name in turn, until that fails.
func (c *Client) poll(ctx context.Context, conn *grpc.ClientConn, back *backoff) error {
	p := poller{conn: conn, first: true}
	for {
		if err := c.pollOnce(ctx, &p); err != nil {
			return verdict(err)
		}
		back.reset()
		c.tell(c.life.Heard(c.server), "hear")
		sleep(ctx, pollInterval*9/10+rand.N(pollInterval/5))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (c *Client) pollOnce(ctx context.Context, p *poller) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	bundle, err := bundlev1.NewBundleClient(p.conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return err
	}
	msg, err := p.entries(ctx)
	if err != nil {
		return err
	}
	if msg.Federated, err = foreignBundles(ctx, p.conn, p.known); err != nil {
		return err
	}
	msg.Bundle = bundle
	if _, err = c.deliver(msg, true); err != nil {
		return err
	}
	if !msg.Full && len(msg.Entries)+len(msg.Removed) == 0 {
		c.sink.Entries(false, nil, nil, 0) // nothing changed, up to now
	}
	return nil
}

// foreignBundles are those that the server has of the trust domains that entries federate with.
func foreignBundles(ctx context.Context, conn *grpc.ClientConn, entries map[string]*types.Entry) (out []*types.Bundle, _ error) {
	asked := map[string]bool{}
	for _, e := range entries {
		for _, name := range e.FederatesWith {
			if asked[name] {
				continue
			}
			asked[name] = true
			b, err := bundlev1.NewBundleClient(conn).GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: name})
			switch {
			case status.Code(err) == codes.NotFound: // it is gone
			case err != nil:
				return nil, err
			default:
				out = append(out, b)
			}
		}
	}
	return out, nil
}
