// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodepb "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/tpm"
)

// Requoter is an Attestor that can say at any time what its machine is now.
type Requoter interface {
	// Requote answers a question that came on the connection of binding, made with the node's key.
	Requote(ctx context.Context, key crypto.Signer, question, binding []byte, history tpm.History) ([]byte, error)
}

// History is what the agent delivered so far (agent/history): how many records, and the head of the
// hash chain over them.
type History interface {
	Head() (count uint64, head [32]byte)
}

// requote answers the server's questions until ctx ends or the server gives a verdict on the node.
// A fault cuts only this stream: the feed goes on, and the server signs nothing until it hears again.
func (c *Client) requote(ctx context.Context, n *node, conn *grpc.ClientConn, r Requoter) error {
	back := backoff{first: 250 * time.Millisecond, most: 10 * time.Second}
	for {
		err := c.answerQuestions(ctx, n, conn, r, &back)
		switch code := status.Code(err); {
		case ctx.Err() != nil:
			return ctx.Err()
		case code == codes.Unimplemented, code == codes.FailedPrecondition:
			c.cfg.Logger.Debug("the server asks for no quotes between attestations", "answer", err)
			return nil
		case code == codes.Aborted:
			return fmt.Errorf("%w: %s", errReattest, status.Convert(err).Message())
		case code == codes.PermissionDenied:
			return verdict(err)
		}
		d := back.next()
		c.cfg.Logger.Warn("the server's questions about this machine are not answered, and it signs nothing until they are; trying again", "in", d.Round(time.Millisecond), "error", err)
		sleep(ctx, d)
	}
}

func (c *Client) answerQuestions(ctx context.Context, n *node, conn *grpc.ClientConn, r Requoter, back *backoff) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := nodepb.NewNodeClient(conn).Requote(ctx)
	if err != nil {
		return err
	}
	for {
		q, err := stream.Recv()
		if err != nil {
			return err
		}
		answer, err := r.Requote(ctx, n.svid.PrivateKey, q.Payload, channelBinding(stream.Context()), c.history())
		if err != nil {
			return fmt.Errorf("answer the server's question: %w", err)
		}
		// A send that fails has its reason in Recv.
		if stream.Send(&nodepb.RequoteAnswer{Payload: answer}) == nil {
			back.reset()
		}
	}
}

func (c *Client) history() (h tpm.History) {
	if c.cfg.History != nil {
		h.Count, h.Head = c.cfg.History.Head()
	}
	return h
}
