// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"testing"
	"time"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/storetest"
)

// TestClockJumps: however the clock is set, what signs afterwards is valid then, and so is what it signs; a small step back
// replaces nothing.
func TestClockJumps(t *testing.T) {
	s, dir, clk := storetest.Open(t), t.TempDir(), &clock{t: time.Now()}
	c := open(t, s, dir, clk)
	for _, jump := range []time.Duration{0, -5 * time.Second, 48 * time.Hour, -48 * time.Hour, 400 * 24 * time.Hour, -400 * 24 * time.Hour} {
		before, err := c.State(ca.X509)
		if err != nil {
			t.Fatal(err)
		}
		clk.advance(jump)
		if err := c.Rotate(t.Context()); err != nil {
			t.Fatalf("after %v: %v", jump, err)
		}
		after, err := c.State(ca.X509)
		if err != nil {
			t.Fatal(err)
		}
		now := clk.now()
		leaf := workload(t, c, ca.Request{})
		if now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
			t.Errorf("after %v: an SVID from %v to %v, it is %v", jump, leaf.NotBefore, leaf.NotAfter, now)
		}
		if small := jump.Abs() < time.Minute; small != (before.Active.ID == after.Active.ID) {
			t.Errorf("after %v: authority %s, before %s", jump, after.Active.ID, before.Active.ID)
		}
		b, _ := c.Bundle()
		valid := 0
		for _, root := range b.X509 {
			if ski(root.Cert.SubjectKeyId) == after.Active.ID && !now.Before(root.Cert.NotBefore) && now.Before(root.Cert.NotAfter) {
				valid++
			}
		}
		if valid != 1 {
			t.Errorf("after %v: %d roots of the active authority are valid", jump, valid)
		}
	}
}
