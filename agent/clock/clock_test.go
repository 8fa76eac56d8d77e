// SPDX-License-Identifier: Apache-2.0

package clock_test

import (
	"context"
	"testing"
	"time"

	"github.com/assay-id/assay/agent/clock"
)

// TestWatch: nothing is said while nothing happens, and it ends with its context. What is said when the clock is set, tests/clock
// shows in a guest.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- clock.Watch(ctx, func() { t.Error("the clock was not set") }) }()
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it goes on without its context")
	}
}
