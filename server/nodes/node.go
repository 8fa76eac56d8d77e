// SPDX-License-Identifier: Apache-2.0

// Package nodes admits agents and knows them: attestors judge what a new agent shows, the
// Registry keeps a record of each agent that was admitted and says whether it still counts.
//
// The life of a record, by the serials of its SVIDs:
//
//	            Attested                    Renewed                  Authorize(new)
//	(no record) ────────▶ {serial, —} ────────────▶ {serial, new} ────────────▶ {new, —}
//	     ▲                    │ ▲ └──── Attested again: {serial', —}, the old one ends at once
//	     └────── Delete ──────┤ │
//	                          ▼ │
//	                       banned: both serials gone; only Delete lifts it
//
// So a renewal whose reply was lost costs nothing: the old serial counts until the new one is used.
//
// Keys in the store: "n" and the path of the agent's ID ("n/spire/agent/tpm/<hash>") hold a Node
// as JSON; "t/<token>" a join token.
package nodes

import (
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// Node is an agent that was admitted (spire.api.types.Agent). A shared Node does not change.
type Node struct {
	ID spiffeid.ID `json:"id"`
	// AttestationType is the type of the attestor that first admitted the agent.
	AttestationType string `json:"attestation_type"`
	// Serial, in decimal, and NotAfter are of the SVID in use; Serial is empty when banned.
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"not_after"`
	// NewSerial and NewNotAfter are of a renewed SVID that was not used yet.
	NewSerial   string    `json:"new_serial,omitempty"`
	NewNotAfter time.Time `json:"new_not_after,omitzero"`
	// Selectors of the node, as last attested, without duplicates.
	Selectors selectors.Set `json:"selectors,omitempty"`
	// CanReattest says that the agent must attest again and may not renew.
	CanReattest bool `json:"can_reattest,omitempty"`
	// Banned agents are refused until their record is deleted.
	Banned bool `json:"banned,omitempty"`
	// AgentVersion is what the agent last said of itself.
	AgentVersion string `json:"agent_version,omitempty"`
	// CreatedAt is when the agent was first admitted, AttestedAt when it last was.
	CreatedAt  time.Time `json:"created_at"`
	AttestedAt time.Time `json:"attested_at"`
}

const (
	nodePrefix  = "n/"
	tokenPrefix = "t/"
	agentPrefix = "/spire/agent/"
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
