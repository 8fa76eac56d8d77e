// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/assay-id/assay/selectors"
)

// Tampering is what a process did to another one, or was allowed to do at once.
type Tampering uint32

// The kinds of tampering; see wire.h.
const (
	PtraceAttached  Tampering     = 1 << iota // a debugger was attached
	MemoryWritten                             // its memory was written from outside
	MemoryRead                                // its memory was read (T1)
	MemoryOpened                              // its /proc/PID/mem was opened (T1)
	DescriptorTaken                           // one of its descriptors was taken (T1)
	Accessed                                  // something else with the rights of a debugger (T1)
	AllTampering    = 1<<iota - 1             // all kinds
)

// Has reports whether all of the given kinds are set.
func (t Tampering) Has(u Tampering) bool { return t&u == u }

var tamperingNames = [...]string{"ptrace attach", "memory write", "memory read", "memory open", "descriptor taken", "access with a debugger's rights"}

// String names the kinds, for people.
func (t Tampering) String() string {
	var names []string
	for i, name := range tamperingNames {
		if t&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// Integrity is what other processes did to a process. It is kept over execve and inherited by
// children, since who can change a program can choose what it starts.
type Integrity struct {
	// Seen is what was seen; Count how often.
	Seen  Tampering
	Count uint32
	// ByTGID and ByExecID name who did the last of it; ByExecID is 0 when that is unknown.
	ByTGID   uint32
	ByExecID uint64
	// Sees is what could not have gone unseen since the image was executed; zero for an image
	// that ran before the sensor. Known: that is all kinds.
	Sees  Tampering
	Known bool
}

// Clean reports whether nothing happened and that is sure.
func (i Integrity) Clean() bool { return i.Known && i.Seen == 0 }

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

// HasFar reports whether a struct task_record names ancestors that are in a struct far_ancestors.
func HasFar(raw []byte) bool {
	return len(raw) == TaskSize && binary.NativeEndian.Uint32(raw[countAt:]) > nearAncestors
}

const countAt = 52 // of task_record.ancestor_count

// DecodeTask reads struct task_record, and struct far_ancestors if the record has some; ErrNoRecord if
// it is empty, ErrTorn if the two are not of the same image.
func DecodeTask(raw, far []byte, bootID string) (t Task, err error) {
	err = t.decode(raw, far, bootID)
	if err != nil {
		return Task{}, err
	}
	return t, nil
}

func (t *Task) decode(raw, far []byte, bootID string) error {
	if len(raw) != TaskSize {
		return fmt.Errorf("%w: a task of %d bytes, want %d", ErrMalformed, len(raw), TaskSize)
	}
	r := reader(raw)
	t.Process = selectors.ProcessKey{BootID: bootID, ExecID: r.u64(), StartBoottime: r.u64()}
	r.u64() // forker_start
	t.CgroupID = r.u64()
	t.Process.TGID = r.u32()
	r.u32() // forker_tgid
	t.UID, t.GID, t.Flags = r.u32(), r.u32(), Flags(r.u32())
	count := r.u32()
	t.Executable = decodeFile(&r)
	switch {
	case t.Process.ExecID == 0:
		return ErrNoRecord
	case t.Process.TGID == 0:
		return fmt.Errorf("%w: process number 0", ErrMalformed)
	case t.Flags&^knownFlags != 0 || t.Flags.Has(Observed) == t.Flags.Has(Seeded):
		return fmt.Errorf("%w: flags %#x", ErrMalformed, uint32(t.Flags))
	case count > MaxAncestors:
		return fmt.Errorf("%w: %d ancestors", ErrMalformed, count)
	}
	t.Ancestors = make([]Ancestor, count)
	near := min(count, nearAncestors)
	if err := decodeAncestors(t.Ancestors[:near], r, bootID); err != nil {
		return err
	}
	if count > near {
		if len(far) != FarSize {
			return fmt.Errorf("%w: far ancestors of %d bytes, want %d", ErrMalformed, len(far), FarSize)
		}
		f := reader(far)
		if f.u64() != t.Process.ExecID {
			return ErrTorn
		}
		if err := decodeAncestors(t.Ancestors[near:], f, bootID); err != nil {
			return err
		}
	}
	r = reader(raw[TaskSize-integritySize-8:])
	return t.Integrity.decode(&r)
}

// decode reads what was seen, and nothing of what could have been.
func (i *Integrity) decode(r *reader) error {
	*i = Integrity{ByExecID: r.u64(), ByTGID: r.u32(), Seen: Tampering(r.u32()), Count: r.u32()}
	r.u32()
	if i.Seen&^AllTampering != 0 {
		return fmt.Errorf("%w: integrity %#x", ErrMalformed, uint32(i.Seen))
	}
	return nil
}

func decodeAncestors(into []Ancestor, r reader, bootID string) error {
	for i := range into {
		a := &into[i]
		a.Process = selectors.ProcessKey{BootID: bootID, ExecID: r.u64(), StartBoottime: r.u64()}
		a.Inode, a.Device, a.Process.TGID, a.Flags = r.u64(), r.u32(), r.u32(), Flags(r.u32())
		r.u32()
		if a.Process.ExecID == 0 || a.Process.TGID == 0 || a.Flags&^knownFlags != 0 {
			return fmt.Errorf("%w: an ancestor is incomplete", ErrMalformed)
		}
	}
	return nil
}

func decodeFile(r *reader) File {
	f := File{Inode: r.u64(), Size: r.u64()}
	sec := int64(r.u64())
	f.FSMagic = r.u64()
	f.ChangeTime = time.Unix(sec, int64(r.u32()))
	f.Device, f.Generation, f.Links = r.u32(), r.u32(), r.u32()
	return f
}
