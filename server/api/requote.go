// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
)

const (
	answerWithin = 30 * time.Second // of a question of Requote
	freshWithin  = 5 * time.Second  // a node that connects is asked at once; signing waits so long
	freshEvery   = 50 * time.Millisecond
)

// Requote asks the caller's TPM again and again, until the caller is no longer admitted.
func (s *nodeService) Requote(stream nodev1.Node_RequoteServer) error {
	c := gate.CallerOf(stream.Context())
	if !s.requotes(c.ID) {
		return status.Error(codes.FailedPrecondition, "this server asks for no quotes of nodes that did not attest by a TPM")
	}
	ctx, leave := s.whileAdmitted(stream.Context())
	defer leave()
	answers := make(chan []byte)
	gone := make(chan error, 1)
	go func() { // ends with the stream
		for {
			msg, err := stream.Recv()
			if err != nil {
				gone <- err
				return
			}
			select {
			case answers <- msg.Payload:
			case <-ctx.Done():
				return
			}
		}
	}()
	ask := func(ctx context.Context, question []byte) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		if err := stream.Send(&nodev1.RequoteQuestion{Payload: question}); err != nil {
			return nil, err
		}
		select {
		case answer := <-answers:
			return answer, nil
		case err := <-gone:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	err := s.cfg.Continuous.Run(ctx, c.ID, c.Cert.RawSubjectPublicKeyInfo, gate.ChannelBinding(stream.Context()), ask)
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	return requoteError(err)
}

// requoteError: a node that is refused is told so; anything else makes it attest again.
func requoteError(err error) error {
	var d *nodes.DeniedError
	switch {
	case err == nil:
		return status.Error(codes.Aborted, "the server ended the conversation; call again")
	case errors.As(err, &d):
		return wire.AgentError(err)
	case status.Code(err) != codes.Unknown: // of the stream
		return err
	}
	return status.Error(codes.Aborted, err.Error())
}

// requotes reports whether the agent has to answer Requote.
func (s *Server) requotes(agent spiffeid.ID) bool {
	n := s.cfg.Nodes.Get(agent)
	return s.cfg.Continuous != nil && n != nil && n.AttestationType == tpm.AttestorType
}

// fresh says why nothing is signed for a node that did not show lately that it still is what it
// was; one that has just connected gets a moment to do so.
func (s *Server) fresh(ctx context.Context, agent spiffeid.ID) error {
	if !s.requotes(agent) || s.cfg.Continuous.Fresh(agent) {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	for {
		select {
		case <-wait.Done():
			return status.Error(codes.Unavailable,
				"this server has seen no quote of the node's TPM lately and signs nothing for it until it has; the agent's log says why it sends none")
		case <-time.After(freshEvery):
		}
		if s.cfg.Continuous.Fresh(agent) {
			return nil
		}
	}
}
