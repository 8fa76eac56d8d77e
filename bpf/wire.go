// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// Sizes of the structures in wire.h, in bytes.
const (
	taskSize    = 776
	credsSize   = 232
	nowSize     = 16 + credsSize
	lookedSize  = 8 + nowSize
	bindingSize = 1336
	execSize    = 400
	eventSize   = 72
	stateSize   = 88
	maxAncestor = 16
)

// ErrMalformed is wrapped by the errors about kernel bytes that break the layout of wire.h.
var ErrMalformed = errors.New("malformed kernel record")

// Flags tell how an image came to be; see wire.h.
type Flags uint32

// The flags of an image.
const (
	Observed        Flags = 1 << iota // the sensor saw the execve
	Seeded                            // the image ran before the sensor
	Deleted                           // its file had no name when it was executed
	MemoryFile                        // memfd, or a file like it
	SecureExec                        // set-uid, set-gid or file capabilities
	Truncated                         // there are more ancestors than the record holds
	LineageUnknown                    // executed by a task without a record
	Forked                            // the process forked after the execve
	ReplacedInPlace                   // of an ancestor: the process went on by execve
	Script                            // the kernel chose an interpreter for the file that was executed
	knownFlags      = 1<<iota - 1
)

// Has reports whether all of the given flags are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// File is an executed file as it was at the execve. Zero when the task has none (a kernel
// thread, or a seeded one that has no memory).
type File struct {
	Inode uint64
	// Device is the kernel's encoding, major<<20 | minor; see StatDevice.
	Device     uint32
	Generation uint32
	Size       uint64
	ChangeTime time.Time
	Links      uint32
	// FSMagic is super_block.s_magic (statfs(2), f_type).
	FSMagic uint64
}

// StatDevice returns the device as stat(2) encodes it.
func (f File) StatDevice() uint64 { return statDevice(f.Device) }

func kernelDevice(dev uint64) uint32 { return unix.Major(dev)<<20 | unix.Minor(dev) }

func statDevice(dev uint32) uint64 {
	major, minor := uint64(dev>>20), uint64(dev&0xfffff)
	return minor&0xff | (major&0xfff)<<8 | (minor&^0xff)<<12 | (major&^0xfff)<<32
}

// Ancestor is an image that a process descends from. Process is the process that ran it when
// this branch left it, and which may run it still unless the flags say ReplacedInPlace.
type Ancestor struct {
	Process selectors.ProcessKey
	Flags   Flags
	Inode   uint64
	Device  uint32 // as File.Device
}

// Task is a process and the image it runs.
type Task struct {
	Process selectors.ProcessKey
	Flags   Flags
	// UID, GID (effective, initial user namespace) and CgroupID (v2) are those at the execve.
	UID, GID   uint32
	CgroupID   uint64
	Executable File
	// Ancestors are the images it descends from, nearest first.
	Ancestors []Ancestor
	Integrity Integrity
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

	file uint64 // the client's open file; 0 is closed
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
}

// reader takes fields off a record in the order of wire.h. Callers check the length first.
type reader []byte

func (r *reader) u32() uint32 {
	v := binary.NativeEndian.Uint32(*r)
	*r = (*r)[4:]
	return v
}

func (r *reader) u64() uint64 {
	v := binary.NativeEndian.Uint64(*r)
	*r = (*r)[8:]
	return v
}

func decodeTask(raw []byte, bootID string) (Task, error) {
	if len(raw) != taskSize {
		return Task{}, fmt.Errorf("%w: a task of %d bytes, want %d", ErrMalformed, len(raw), taskSize)
	}
	r := reader(raw)
	t := Task{Process: selectors.ProcessKey{BootID: bootID, ExecID: r.u64(), StartBoottime: r.u64()}}
	r.u64() // forker_start
	t.CgroupID = r.u64()
	t.Process.TGID = r.u32()
	r.u32() // forker_tgid
	t.UID, t.GID, t.Flags = r.u32(), r.u32(), Flags(r.u32())
	count := r.u32()
	t.Executable = decodeFile(&r)
	switch {
	case t.Process.ExecID == 0:
		return Task{}, ErrNoRecord
	case t.Process.TGID == 0:
		return Task{}, fmt.Errorf("%w: process number 0", ErrMalformed)
	case t.Flags&^knownFlags != 0 || t.Flags.Has(Observed) == t.Flags.Has(Seeded):
		return Task{}, fmt.Errorf("%w: flags %#x", ErrMalformed, uint32(t.Flags))
	case count > maxAncestor:
		return Task{}, fmt.Errorf("%w: %d ancestors", ErrMalformed, count)
	}
	t.Ancestors = make([]Ancestor, count)
	for i := range t.Ancestors {
		a := &t.Ancestors[i]
		a.Process = selectors.ProcessKey{BootID: bootID, ExecID: r.u64(), StartBoottime: r.u64()}
		a.Inode, a.Device, a.Process.TGID, a.Flags = r.u64(), r.u32(), r.u32(), Flags(r.u32())
		r.u32()
		if a.Process.ExecID == 0 || a.Process.TGID == 0 || a.Flags&^knownFlags != 0 {
			return Task{}, fmt.Errorf("%w: ancestor %d is incomplete", ErrMalformed, i)
		}
	}
	r = reader(raw[taskSize-32:])
	t.Integrity = Integrity{ByExecID: r.u64(), ByTGID: r.u32(), Seen: Tampering(r.u32()), Count: r.u32()}
	if t.Integrity.Seen&^knownTampering != 0 {
		return Task{}, fmt.Errorf("%w: integrity %#x", ErrMalformed, uint32(t.Integrity.Seen))
	}
	return t, nil
}

func decodeFile(r *reader) File {
	f := File{Inode: r.u64(), Size: r.u64()}
	sec := int64(r.u64())
	f.FSMagic = r.u64()
	f.ChangeTime = time.Unix(sec, int64(r.u32()))
	f.Device, f.Generation, f.Links = r.u32(), r.u32(), r.u32()
	return f
}

func decodeBinding(raw []byte, bootID string) (b Binding, asked uint64, err error) {
	if len(raw) != bindingSize {
		return Binding{}, 0, fmt.Errorf("%w: a binding of %d bytes, want %d", ErrMalformed, len(raw), bindingSize)
	}
	b.Task, err = decodeTask(raw[:taskSize], bootID)
	if errors.Is(err, ErrNoRecord) {
		return Binding{}, 0, ErrNoBinding
	} else if err != nil {
		return Binding{}, 0, err
	}
	r := reader(raw[taskSize:])
	b.CgroupID, b.Connected, b.Credentials = r.u64(), r.u64(), decodeCredentials(&r)
	b.HandedExecID, asked, b.Holder.ExecID = r.u64(), r.u64(), r.u64()
	tier, state := r.u32(), r.u32()
	b.Handed, b.HandedTGID = HandedOver(r.u32()), r.u32()
	b.Holder.References, b.Holder.Held = int32(r.u32()), int32(r.u32())
	b.Holder.Tables, b.Holder.Threads = int32(r.u32()), int32(r.u32())
	b.Now, _ = decodeNow(&r)
	b.file = r.u64()
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

func decodeEvent(raw []byte, bootID string) (Event, error) {
	if len(raw) != eventSize {
		return Event{}, fmt.Errorf("%w: an event of %d bytes, want %d", ErrMalformed, len(raw), eventSize)
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
	if e.Tampering&^knownTampering != 0 || int(e.Refused) >= len(refusedNames) {
		return Event{}, fmt.Errorf("%w: an event of kind %d about %d", ErrMalformed, e.Kind, detail)
	}
	if e.Process.ExecID == 0 && e.Kind != EventRefused || e.Process.TGID == 0 || e.Flags&^knownFlags != 0 {
		return Event{}, fmt.Errorf("%w: an event without a process", ErrMalformed)
	}
	return e, nil
}
