// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What a look-up did not find, or not whole; test with errors.Is.
var (
	// ErrNoRecord: the process is gone, or the sensor never saw how it came to be.
	ErrNoRecord = errors.New("the sensor has no record of this process")
	// ErrNoBinding: the socket was connected while the sensor was not attached, by a process
	// without a record, from outside the cgroup tree that the sensor sees, or (T2) by a name that
	// is not the socket's own and not in bpf.Config.SocketNames.
	ErrNoBinding = errors.New("the sensor did not see who connected this socket: perhaps by a name that it does not watch (socket_names)")
	// ErrMalformed: kernel bytes break the layout of wire.h.
	ErrMalformed = errors.New("malformed kernel record")
	// ErrTorn: the parts of a record are of different images, because the process executed another one
	// while they were read.
	ErrTorn = errors.New("the process executed another program meanwhile")
)

// Sizes of the structures in wire.h, in bytes.
const (
	taskHead      = 104 // before the ancestors
	integritySize = 24
	ancestorSize  = 40
	TaskSize      = taskHead + nearAncestors*ancestorSize + integritySize + 8
	FarSize       = 8 + (MaxAncestors-nearAncestors)*ancestorSize
	credsSize     = 232
	NowSize       = 16 + credsSize
	LookedSize    = 8 + NowSize
	HoldersSize   = 40
	callerSize    = TaskSize + FarSize + 16 + credsSize
	BindingSize   = callerSize + 56 + NowSize + 8 + integritySize
	// AnswerSize is that of a binding behind AnswerName bytes for the socket's name.
	AnswerName    = 128
	AskedAt       = callerSize + 8 // where a binding says when the agent asked
	AnswerSize    = AnswerName + BindingSize
	ExecSize      = 400
	FileStateSize = 16
	CodeSize      = 8 + MaxMappedFiles*32
	EventSize     = 72
	StateSize     = 88
)

// How many of each a structure holds.
const (
	MaxAncestors   = 16
	nearAncestors  = 6  // of them are in the task's own record
	MaxGroups      = 32 // supplementary
	MaxMappedFiles = 60
	SocketNames    = 8
	NameMax        = 107 // bytes of such a name, as in sockaddr_un
)

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

// NamespaceNumbers are the numbers of struct namespaces in wire.h.
type NamespaceNumbers struct{ User, PID, Mount, Network, Cgroup, IPC, UTS uint32 }

func decodeNamespaces(r *reader) NamespaceNumbers {
	n := NamespaceNumbers{r.u32(), r.u32(), r.u32(), r.u32(), r.u32(), r.u32(), r.u32()}
	r.u32()
	return n
}

// State is what the programs count; see sensor_state in wire.h.
type State struct {
	NextExecID, SeedTime, Seeded, EventsLost, RecordsLost uint64
	Host                                                  NamespaceNumbers
	Refused                                               uint64
}

// DecodeState reads struct sensor_state.
func DecodeState(raw []byte) (c State, err error) {
	if len(raw) != StateSize {
		return c, fmt.Errorf("%w: a state of %d bytes, want %d", ErrMalformed, len(raw), StateSize)
	}
	r := reader(raw)
	c = State{NextExecID: r.u64(), SeedTime: r.u64(), Seeded: r.u64(), EventsLost: r.u64(), RecordsLost: r.u64()}
	r.u64() // next_token
	c.Host = decodeNamespaces(&r)
	c.Refused = r.u64()
	return c, nil
}
