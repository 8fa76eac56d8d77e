// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"

	"github.com/assay-id/assay/selectors"
)

// Now is how a process is at the moment of a question.
type Now struct {
	// Known is false when no hook can tell here, or the process is gone.
	Known       bool
	CgroupID    uint64
	Credentials Credentials
}

// decode returns when the process started; 0: it is unknown.
func (n *Now) decode(r *reader) (start uint64) {
	if start = r.u64(); start == 0 {
		*r = (*r)[NowSize-8:]
		return 0
	}
	n.Known, n.CgroupID = true, r.u64()
	n.Credentials.decode(r)
	return start
}

// HandedOver tells what a process other than the owner did with the client's end (T1).
type HandedOver uint32

// The ways a client's end is used by another.
const (
	HandedSend    HandedOver = 1 << iota // it sent (and was refused)
	HandedReceive                        // it received (and was refused)
	HandedPass                           // it was given a descriptor
	knownHanded   = 1<<iota - 1
)

// Binding is who connected an accepted socket, and what is known of that connection since.
type Binding struct {
	// Tier of the hook that wrote it.
	Tier selectors.Tier
	// Task is the caller at connect.
	Task Task
	// Credentials and CgroupID (v2) are the caller's at connect.
	Credentials
	CgroupID uint64
	// Connected is nanoseconds since boot (CLOCK_BOOTTIME).
	Connected uint64

	// Handed, HandedTGID and HandedExecID are of the last foreign use; T1 only.
	Handed       HandedOver
	HandedTGID   uint32
	HandedExecID uint64

	// Shared: another process tried to connect the same socket. PeerDiffers: the connect that
	// succeeded was not the recorded one. Either makes the binding worthless. T2 only.
	Shared, PeerDiffers bool
	// Holder is the state at the question; T2 only.
	Holder Holder
	// Now is how the process whose connect succeeded is at the question.
	Now Now

	// OpenFile is the kernel's address of the client's open file, which only says "the same" (T2);
	// 0 is closed.
	OpenFile uint64
}

// Holder is who held the client's end at the moment of the question (T2).
type Holder struct {
	// Closed: no process has the client's end open.
	Closed bool
	// Alive: the process that connected exists. ExecID is the image it runs now.
	Alive  bool
	ExecID uint64
	// InFlight: the client's end is inside an SCM_RIGHTS message.
	InFlight bool
	// Traced: a debugger is attached to the process.
	Traced bool
	// References to the open file, and descriptors of the process that are this file. More
	// references than descriptors means another holder, or a system call at work with it.
	References, Held int32
	// Tables is the number of tasks that share the process's descriptors, Threads the number
	// of its threads. More tables than threads means that another process shares them.
	Tables, Threads int32
	// Done is what was seen of tampering with the process until the question.
	Done Integrity
}

// DecodeBinding reads struct binding, and when the agent asked for it (CLOCK_BOOTTIME, nanoseconds);
// ErrNoBinding if it is empty.
func DecodeBinding(raw []byte, bootID string) (b Binding, asked uint64, err error) {
	if len(raw) != BindingSize {
		return Binding{}, 0, fmt.Errorf("%w: a binding of %d bytes, want %d", ErrMalformed, len(raw), BindingSize)
	}
	err = b.Task.decode(raw[:TaskSize], raw[TaskSize:TaskSize+FarSize], bootID)
	if errors.Is(err, ErrNoRecord) {
		return Binding{}, 0, ErrNoBinding
	} else if err != nil {
		return Binding{}, 0, err
	}
	r := reader(raw[TaskSize+FarSize:])
	b.CgroupID, b.Connected = r.u64(), r.u64()
	b.Credentials.decode(&r)
	b.HandedExecID, asked, b.Holder.ExecID = r.u64(), r.u64(), r.u64()
	tier, state := r.u32(), r.u32()
	b.Handed, b.HandedTGID = HandedOver(r.u32()), r.u32()
	b.Holder.References, b.Holder.Held = int32(r.u32()), int32(r.u32())
	b.Holder.Tables, b.Holder.Threads = int32(r.u32()), int32(r.u32())
	b.Now.decode(&r)
	b.OpenFile = r.u64()
	if err := b.Holder.Done.decode(&r); err != nil {
		return Binding{}, 0, err
	}
	b.Tier = selectors.Tier(tier)
	switch {
	case tier != uint32(selectors.TierT1) && tier != uint32(selectors.TierT2):
		return Binding{}, 0, fmt.Errorf("%w: a binding of tier %d", ErrMalformed, tier)
	case state&^63 != 0:
		return Binding{}, 0, fmt.Errorf("%w: binding state %#x", ErrMalformed, state)
	case b.Handed&^knownHanded != 0:
		return Binding{}, 0, fmt.Errorf("%w: binding handed over %#x", ErrMalformed, uint32(b.Handed))
	}
	b.Shared, b.PeerDiffers = state&1 != 0, state&2 != 0
	b.Holder.Closed, b.Holder.Alive = state&4 != 0, state&8 != 0
	b.Holder.InFlight, b.Holder.Traced = state&16 != 0, state&32 != 0
	return b, asked, nil
}
