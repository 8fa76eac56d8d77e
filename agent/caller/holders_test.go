// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"testing"

	"golang.org/x/sys/unix"
)

// testBlocked: threads that wait with the socket are the caller's own, unless somebody else may
// hold it, too.
func testBlocked(t *testing.T, a *agent) {
	p, _, c := a.client(t)
	p.say("block")
	if err := c.Check(); err != nil {
		t.Errorf("a caller whose threads wait with its socket: %v", err)
	}
	p.say("dup")
	if err := c.Check(); err != nil {
		t.Errorf("the same with two descriptors: %v", err)
	}
	p.say("inherit")
	wantRefusal(t, "another process holds it, too", c.Check(), HandedOver)

	p, _, c = a.client(t)
	p.say("block")
	p.say("in flight")
	wantRefusal(t, "it is under way", c.Check(), HandedOver)

	p, _, c = a.client(t)
	p.say("block")
	if said := p.say("ring"); said != unix.Errno(0).Error() {
		t.Fatalf("io_uring_setup: %s", said)
	}
	wantRefusal(t, "the caller has an io_uring", c.Check(), HandedOver)
}
