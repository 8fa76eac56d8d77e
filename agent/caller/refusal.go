// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"fmt"
	"maps"
	"slices"
)

// Reason is why a caller is refused.
type Reason string

// The reasons.
const (
	NoBinding    Reason = "no_binding"    // the kernel has no record of who connected
	Gone         Reason = "gone"          // the process has exited
	Replaced     Reason = "replaced"      // its number belongs to another process or image
	Executed     Reason = "executed"      // it executed another program after it connected
	SharedSocket Reason = "shared_socket" // several processes tried to connect the socket
	HandedOver   Reason = "handed_over"   // another process holds or used its end
	Closed       Reason = "closed"        // the connection is closed

	CredentialsChanged Reason = "credentials_changed" // it has other credentials or namespaces now
	MovedCgroup        Reason = "moved_cgroup"        // it is in another cgroup now
	Tampered           Reason = "tampered"            // another process debugged it or used its memory since
)

var advice = map[Reason]string{
	NoBinding:    "connect again while the agent's sensor is attached, from inside its cgroup tree",
	Gone:         "connect from a process that stays",
	Replaced:     "connect again from the running process",
	Executed:     "connect again from the new program",
	SharedSocket: "connect each socket in one process only",
	HandedOver:   "open a connection of its own in each process",
	Closed:       "connect again",

	CredentialsChanged: "connect after the last change of credentials",
	MovedCgroup:        "connect again from the cgroup where it stays",
	Tampered:           "connect again; what was done to it shows in the selectors",
}

// Refusal says why a connection's caller is not served.
type Refusal struct {
	Reason Reason
	// Detail is what was seen.
	Detail string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("caller refused (%s): %s; %s", r.Reason, r.Detail, advice[r.Reason])
}

// Kind is the reason in one word.
func (r *Refusal) Kind() string { return string(r.Reason) }

// Reasons are all of them.
func Reasons() []Reason { return slices.Sorted(maps.Keys(advice)) }

func refuse(why Reason, format string, args ...any) *Refusal {
	return &Refusal{why, fmt.Sprintf(format, args...)}
}
