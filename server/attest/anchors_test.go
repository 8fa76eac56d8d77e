// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"slices"
	"testing"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
)

// TestVouchedSurvivesAnAttestation: an agent can not make the server forget what its TPM vouched for
// by attesting anew with another history.
func TestVouchedSurvivesAnAttestation(t *testing.T) {
	_, a := booted(t, "uki", nil)
	long, short := tpm.History{Count: 5, Head: [32]byte{5}}, tpm.History{Count: 2, Head: [32]byte{2}}
	for _, h := range []tpm.History{long, short, short} {
		a.history = h
		end, stop := a.watched()
		eventually(t, func() bool { return len(a.w.attestor.Continuous.anchors(a.id)) > 0 })
		stop()
		must(t, <-end)
		must(t, a.attest(t.Context()))
	}
	restarted := &Continuous{Nodes: a.w.registry, Interval: interval, Now: a.w.later, Logger: quiet(t)}
	for what, c := range map[string]*Continuous{"this server": a.w.attestor.Continuous, "a server that was restarted": restarted} {
		got := c.Vouched(a.id)
		if !slices.ContainsFunc(got, func(x nodes.Anchor) bool { return x.History == long && !x.At.IsZero() }) {
			t.Errorf("%s knows %+v", what, got)
		}
	}
}
