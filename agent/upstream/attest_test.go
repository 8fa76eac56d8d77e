// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/proof"
	"github.com/assay-id/assay/tpm"
)

// echo answers a challenge with the challenge and the connection's name.
type echo struct{ proof.JoinToken }

func (echo) Answer(_ context.Context, challenge, binding []byte) ([]byte, error) {
	return append(challenge, binding...), nil
}

// Challenges go to the attestor with the connection's own value, as many as the server has.
func TestChallenges(t *testing.T) {
	f := startFar(t, false)
	f.admits(func(payload []byte, challenge func([]byte) []byte) error {
		first, second := challenge([]byte("1")), challenge([]byte("2"))
		if string(payload) != "x" || len(first) != 1+tpm.BindingSize || !bytes.Equal(first[1:], second[1:]) || second[0] != '2' {
			return status.Errorf(codes.InvalidArgument, "%q, %x, %x", payload, first, second)
		}
		return nil
	})
	_, s, _ := f.run(echo{proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [pushed]")
}
