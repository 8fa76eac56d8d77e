// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"

	"github.com/assay-id/assay/selectors"
)

// EventKind is what an event tells.
type EventKind uint32

// The kinds of events.
const (
	EventExec    EventKind = iota + 1 // an execve; Process is the new image
	EventTamper                       // of a process that connected to the agent
	EventMoved                        // of a process that connected to the agent: to another cgroup
	EventRefused                      // Process tried what protection or the gate forbids
)

// Refused is what a process was not allowed to do to the agent; its text follows "tried to".
type Refused uint32

var refusedNames = [...]string{"do nothing", "debug it or use its memory or descriptors", "send it a signal", "use its files or pins", "unmount its pins",
	"get a map of its sensor", "get a program of its sensor", "get a link of its sensor", "connect from a cgroup that is not on the list"}

func (r Refused) String() string {
	if int(r) < len(refusedNames) {
		return refusedNames[r]
	}
	return fmt.Sprintf("do something unknown (%d)", uint32(r))
}

// Event is an execve that the sensor saw, a change of a process that connected, or what a process
// was refused. Events may be lost; they are history, not evidence.
type Event struct {
	Kind    EventKind
	Process selectors.ProcessKey
	// Time is nanoseconds since boot (CLOCK_BOOTTIME).
	Time uint64
	// ParentExecID is the nearest ancestor's, 0 when it is unknown.
	ParentExecID uint64
	CgroupID     uint64
	UID          uint32
	Flags        Flags
	Inode        uint64
	Device       uint32 // as File.Device
	Tampering    Tampering
	Refused      Refused // of EventRefused; Process.ExecID is then 0 for a process without a record
}

// DecodeEvent reads struct event.
func DecodeEvent(raw []byte, bootID string) (Event, error) {
	if len(raw) != EventSize {
		return Event{}, fmt.Errorf("%w: an event of %d bytes, want %d", ErrMalformed, len(raw), EventSize)
	}
	r := reader(raw)
	e := Event{Process: selectors.ProcessKey{BootID: bootID, ExecID: r.u64(), StartBoottime: r.u64()}}
	e.Time, e.ParentExecID, e.CgroupID, e.Inode = r.u64(), r.u64(), r.u64(), r.u64()
	e.Device, e.Process.TGID, e.UID, e.Flags = r.u32(), r.u32(), r.u32(), Flags(r.u32())
	e.Kind = EventKind(r.u32())
	detail := r.u32()
	switch e.Kind {
	case EventExec, EventTamper, EventMoved:
		e.Tampering = Tampering(detail)
	case EventRefused:
		e.Refused = Refused(detail)
	default:
		return Event{}, fmt.Errorf("%w: an event of kind %d", ErrMalformed, e.Kind)
	}
	if e.Tampering&^AllTampering != 0 || int(e.Refused) >= len(refusedNames) {
		return Event{}, fmt.Errorf("%w: an event of kind %d about %d", ErrMalformed, e.Kind, detail)
	}
	if e.Process.ExecID == 0 && e.Kind != EventRefused || e.Process.TGID == 0 || e.Flags&^knownFlags != 0 {
		return Event{}, fmt.Errorf("%w: an event without a process", ErrMalformed)
	}
	return e, nil
}
