// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"
	"time"
)

// TestPace: a few slow writes in a row are a slow disk, one is not, and what was long ago is not either.
func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	p.took(9*time.Second, at(0))
	if got := p.lately(at(0)); got != 0 {
		t.Errorf("after one write: %v", got)
	}
	for i := range 8 {
		p.took(2*time.Second, at(time.Duration(i)*time.Second))
	}
	if got := p.lately(at(8 * time.Second)); got < 2*time.Second || got > 3*time.Second {
		t.Errorf("after nine: %v", got)
	}
	for range 10 {
		p.took(time.Millisecond, at(9*time.Second))
	}
	if got := p.lately(at(9 * time.Second)); got > slowWrite {
		t.Errorf("after ten that were quick: %v", got)
	}
	if got := p.lately(at(9*time.Second + paceFor + 1)); got != 0 {
		t.Errorf("long after: %v", got)
	}
}
