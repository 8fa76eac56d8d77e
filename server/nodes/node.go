// SPDX-License-Identifier: Apache-2.0

// Package nodes knows agents: the Registry keeps a record of each and says whether it still counts,
// the Inventory lists the TPMs that operators vouch for. Package server/attest judges them.
//
// The life of a record, by the serials of its SVIDs:
//
//	            Attested                    Renewed                  Authorize(new)
//	(no record) ────────▶ {serial, —} ────────────▶ {serial, new} ────────────▶ {new, —}
//	     ▲                      ▲ └──── Attested again: {serial', —}, the old one ends at once
//	     └─ Delete
//
// So a renewal whose reply was lost costs nothing: the old serial counts until the new one is used.
//
// And by its state; only an admitted node's serials count:
//
//	Hold ──▶ pending ──Approve──▶ admitted ◀──Readmit, or Attested── suspended
//	            │                  ▲  │ └──────────Suspend──────────────▲ │
//	            │         Attested ┘  ▼                                   │
//	            └──────────Ban─────▶ banned ◀─────────────Ban─────────────┘   only Delete lifts it
//
// Keys in the store: "n" and the path of the agent's ID ("n/spire/agent/tpm/<hash>") hold a Node
// as JSON; "t/<token>" a join token; "i/<EK hash>" a Device of the inventory.
package nodes

import (
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/verify"
)

// State is what a node may do, in one word.
type State string

const (
	StatePending   State = "pending"   // waits for an operator's approval; holds no SVID
	StateAdmitted  State = "admitted"  // its SVID counts
	StateSuspended State = "suspended" // its SVID does not count until it is readmitted
	StateBanned    State = "banned"    // refused until its record is deleted
)

// Who changes states, besides operators ("operator <name>").
const (
	ByAttestation = "attestation"
	ByDrift       = "drift"
	ByPolicy      = "policy"
	ByClone       = "clone"
)

// Standing is a state and how it came about.
type Standing struct {
	State State `json:"state"`
	// Reason is a sentence for people.
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	By     string    `json:"by,omitempty"`
}

// maxHistory is how many former states a record keeps.
const maxHistory = 16

// Node is an agent that attested (spire.api.types.Agent). A shared Node does not change.
type Node struct {
	ID spiffeid.ID `json:"id"`
	// Standing is the present one, History the ones before it, oldest first, at most 16.
	Standing
	History []Standing `json:"history,omitempty"`
	// AttestationType is the type of the attestor that first judged the agent.
	AttestationType string `json:"attestation_type"`
	// Serial, in decimal, and NotAfter are of the SVID in use; Serial is empty when there is none.
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"not_after"`
	// NewSerial and NewNotAfter are of a renewed SVID that was not used yet.
	NewSerial   string    `json:"new_serial,omitempty"`
	NewNotAfter time.Time `json:"new_not_after,omitzero"`
	// Selectors of the node, as last attested, without duplicates.
	Selectors selectors.Set `json:"selectors,omitempty"`
	// Checks that passed at the last attestation, in order.
	Checks []verify.Check `json:"checks,omitempty"`
	// CanReattest says that the agent must attest again and may not renew.
	CanReattest bool `json:"can_reattest,omitempty"`
	// AgentVersion is what the agent last said of itself.
	AgentVersion string `json:"agent_version,omitempty"`
	// CreatedAt is when the agent was first seen, AttestedAt when it last attested.
	CreatedAt  time.Time `json:"created_at"`
	AttestedAt time.Time `json:"attested_at"`
	// TPM is what is known of the machine from its TPM; nil if it attested otherwise.
	TPM *TPMState `json:"tpm,omitempty"`
}

// enter gives the node a new standing.
func (n *Node) enter(s Standing) {
	if n.State != "" {
		n.History = append(n.History, n.Standing)
		n.History = slices.Clone(n.History[max(0, len(n.History)-maxHistory):])
	}
	n.Standing = s
}

// noSVID makes the node's SVIDs count no longer.
func (n *Node) noSVID() {
	n.Serial, n.NewSerial, n.NewNotAfter = "", "", time.Time{}
}

const (
	nodePrefix      = "n/"
	tokenPrefix     = "t/"
	inventoryPrefix = "i/"
	agentPrefix     = "/spire/agent/"
)

func nodeKey(id spiffeid.ID) string { return "n" + id.Path() }

// IsAgentID reports whether the path is one of an agent: below /spire/agent/.
func IsAgentID(id spiffeid.ID) bool { return strings.HasPrefix(id.Path(), agentPrefix) }

// IsAliasEntry reports whether an entry has the shape that CreateJoinToken gives to the entry
// for its agent_id: below the token's agent, with only its ID as selector. Entries of this shape
// go when the agent is deleted, others stay.
func IsAliasEntry(e *selectors.Entry, agent spiffeid.ID) bool {
	return e.ParentID == agent && len(e.Selectors) == 1 && e.Selectors[0] == IDSelector(agent)
}

// IDSelector is the selector "spiffe_id:<id>" by which an entry means one agent.
func IDSelector(agent spiffeid.ID) selectors.Selector {
	return selectors.Selector{Type: "spiffe_id", Value: agent.String()}
}
