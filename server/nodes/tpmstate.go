// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/verify"
)

// TPMState is what is known of a machine from its TPM. Its record holds the state of the last
// attestation, or a later one: not every quote is written down.
type TPMState struct {
	// AK is the attestation key (TPMT_PUBLIC) that the TPM vouched for.
	AK []byte `json:"ak"`
	// Quoted is what the last quote said, at QuotedAt.
	Quoted   verify.Quoted `json:"quoted"`
	QuotedAt time.Time     `json:"quoted_at"`
	// Facts are what the selectors come from.
	Facts selectors.NodeFacts `json:"facts"`
	// IMA is how far the IMA log was replayed and judged; the zero State without one.
	IMA ima.State `json:"ima,omitzero"`
	// BootLog is the firmware's event log, deflated, unless it is very large; CommandLine what the machine claimed.
	BootLog     []byte `json:"boot_log,omitempty"`
	CommandLine string `json:"command_line,omitempty"`
	// Group is the node group by whose rules the machine was judged; "" without rules.
	Group string `json:"group,omitempty"`
	// History is what the agent had delivered at the last quote.
	History tpm.History `json:"history,omitzero"`
	// Former is the longest history that the TPM vouched for before this attestation.
	Former *Anchor `json:"former,omitempty"`
}

// Anchor is what a machine's TPM vouched for at one time: a part of the agent's history that can not
// be rewritten.
type Anchor struct {
	At      time.Time
	Clock   uint64
	History tpm.History
}
