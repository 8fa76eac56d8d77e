// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/life"
	nodepb "github.com/assay-id/assay/proto/node"
)

// ErrBanned ends Run: an operator banned this node.
var ErrBanned = errors.New("this node was banned by the server; an operator can let it back with `assay node evict`, after which it attests anew")

// ErrNotAdmitted ends Run at its first attestation: the server judged the node's proof and said no.
var ErrNotAdmitted = errors.New("the server did not admit this node")

var errReattest = errors.New("the server asks for a new attestation")

// standingError: the server refuses the node for its state (proto/node.Standing), which may change.
type standingError struct{ state, text string }

// pending is the state of a node that waits for approval; the other one is suspended.
const pending = "pending"

func (e *standingError) Error() string { return e.text }

// joinToken is the attestor's type whose refusal has a usual reason.
const joinToken = "join_token"

// bannedText is how SPIRE's servers tell an agent that it is banned: without details.
const bannedText = "failed to attest: agent is banned"

// admission tells a verdict on this node, which attested by the given type, from a fault that
// may pass.
func admission(attestor string, err error) error {
	switch code := status.Code(err); code {
	case codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition:
		if v := verdict(err); v != err {
			return v
		}
		text := status.Convert(err).Message()
		if text == bannedText {
			return ErrBanned
		}
		if code == codes.InvalidArgument && attestor == joinToken {
			text += "; a token works once and for a limited time, make a new one with `assay token create`"
		}
		return fmt.Errorf("%w: %s", ErrNotAdmitted, text)
	}
	return fmt.Errorf("attest: %w", err)
}

// verdict reads the details of a denial: our Standing, and SPIRE's PermissionDeniedDetails. An
// error without them is returned as it is.
func verdict(err error) error {
	st := status.Convert(err)
	if st.Code() != codes.PermissionDenied {
		return err
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *nodepb.Standing: // it comes first where both are
			return &standingError{d.State, st.Message()}
		case *types.PermissionDeniedDetails:
			switch d.Reason {
			case types.PermissionDeniedDetails_AGENT_BANNED:
				return ErrBanned
			case types.PermissionDeniedDetails_AGENT_EXPIRED, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED,
				types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, types.PermissionDeniedDetails_AGENT_MUST_REATTEST:
				return fmt.Errorf("%w (%s)", errReattest, d.Reason)
			}
		}
	}
	return err
}

// outside is a node's time between a refusal and its way back. Not for concurrent use.
type outside struct {
	told string // the refusal that was logged last
	back backoff
}

func newOutside() outside { return outside{back: backoff{first: time.Second, most: 30 * time.Second}} }

// refused takes everything from the workloads at once, for as long as the server refuses the node,
// and returns after how long to ask again. A node that can attest again does: that is the way back.
func (c *Client) refused(o *outside, err error) time.Duration {
	c.sink.Entries(true, nil, nil, 0)
	c.feedState = nil
	c.mu.Lock()
	keep := c.node != nil && !c.node.reattestable
	c.mu.Unlock()
	if !keep {
		c.forget()
	}
	event, what := life.Refuse, "refused by the server; workloads have no identities until it admits this node again, which is tried from now on"
	var s *standingError
	if errors.As(err, &s) {
		event, what = life.Suspend, s.state+" by the server; workloads have no identities until it admits this node, which is tried from now on"
		if s.state == pending {
			event = life.Hold
		}
	}
	if text := err.Error(); text != o.told {
		o.told = text
		c.cfg.Logger.Warn(what, "reason", text)
	}
	d := o.back.next()
	c.life.Failed(event, err.Error(), d)
	return d
}

// calm is how long a session lasts after which an attestation that the server asks for is not one
// in a row of them.
const calm = time.Minute
