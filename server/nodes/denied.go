// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrNotFound: no agent has that ID.
var ErrNotFound = errors.New("agent not found")

// Reason says why an agent is refused.
type Reason int

// Up to MustReattest the values are those of SPIRE's PermissionDeniedDetails.Reason.
const (
	Expired      Reason = iota + 1 // the SVID has expired
	NotAttested                    // there is no record of the agent
	NotActive                      // the SVID is not the one in use
	Banned                         // an operator banned the agent
	MustReattest                   // this agent attests again instead of renewing
	Pending                        // an operator has to approve the agent
	Suspended                      // the agent is suspended
)

// DeniedError is the refusal of an agent.
type DeniedError struct {
	Agent  spiffeid.ID
	Reason Reason
	// Detail is why the agent is pending, suspended or banned; may be empty.
	Detail string
	// Reattest says that a full attestation that passes would end the suspension.
	Reattest bool
}

func (e *DeniedError) Error() string {
	because := ""
	if e.Detail != "" {
		because = " (" + e.Detail + ")"
	}
	switch e.Reason {
	case Expired:
		return fmt.Sprintf("agent %q SVID is expired", e.Agent)
	case NotAttested:
		return fmt.Sprintf("agent %q is not attested", e.Agent)
	case NotActive:
		return fmt.Sprintf("agent %q SVID is not active: it has a newer one, or another agent attested as the same node, or it was readmitted; attest again", e.Agent)
	case Banned:
		return fmt.Sprintf("agent %q is banned%s; delete it to let it attest again", e.Agent, because)
	case MustReattest:
		return fmt.Sprintf("agent %q must attest again instead of renewing its SVID", e.Agent)
	case Pending:
		return fmt.Sprintf("agent %q waits for approval%s: assay node approve %s", e.Agent, because, e.Agent)
	case Suspended:
		if e.Reattest {
			return fmt.Sprintf("agent %q is suspended%s until it attests again in full and passes", e.Agent, because)
		}
		return fmt.Sprintf("agent %q is suspended%s; when its cause is dealt with: assay node readmit %s", e.Agent, because, e.Agent)
	}
	return fmt.Sprintf("agent %q is refused for the unknown reason %d", e.Agent, e.Reason)
}

// denial returns why a node in its state is refused, or nil if it is admitted.
func (r *Registry) denial(n *Node) *DeniedError {
	detail := n.Standing.Reason
	if n.By != "" && n.State != StatePending {
		detail = "by " + n.By
		if n.Standing.Reason != "" {
			detail += ": " + n.Standing.Reason
		}
	}
	switch n.State {
	case StateAdmitted:
		return nil
	case StatePending:
		return &DeniedError{Agent: n.ID, Reason: Pending, Detail: detail}
	case StateSuspended:
		return &DeniedError{Agent: n.ID, Reason: Suspended, Detail: detail, Reattest: r.liftable(n)}
	}
	return &DeniedError{Agent: n.ID, Reason: Banned, Detail: detail} // and what a later version may know
}

// liftable says whether a full attestation ends the node's suspension.
func (r *Registry) liftable(n *Node) bool {
	return r.cfg.ReadmitByAttestation && n.State == StateSuspended && (n.By == ByDrift || n.By == ByPolicy)
}
