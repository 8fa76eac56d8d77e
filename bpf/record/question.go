// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"fmt"
)

// Settings are struct sensor_settings of wire.h, where the fields are explained.
type Settings struct {
	Build       uint64
	TamperSince uint64
	Protected   uint64
	PinDev      uint32
	AgentTGID   uint32
	Tier        uint32
	TamperSeen  uint32
	Answer      uint64
	Names       [SocketNames]struct {
		Length uint32
		Text   [NameMax + 1]byte
	}
}

// AskNow asks how a process is now, in the bytes of struct looked.
func AskNow(tgid uint32) []byte {
	return append(binary.NativeEndian.AppendUint64(nil, uint64(tgid)), make([]byte, NowSize)...)
}

// DecodeNow reads the answer about one process, and its start; start 0 is no such process.
func DecodeNow(raw []byte) (n Now, start uint64, err error) {
	if len(raw) != LookedSize {
		return Now{}, 0, fmt.Errorf("%w: an answer of %d bytes, want %d", ErrMalformed, len(raw), LookedSize)
	}
	r := reader(raw[8:])
	start = n.decode(&r)
	return n, start, nil
}

// Holders are the processes that hold the client's end of a connection.
type Holders struct {
	// Own and Others are the descriptors of the process that connected and of all others;
	// OtherTGID is one of these.
	Own, Others, OtherTGID uint32
	// Rings is more than 0 if that process has or used io_uring, which may hold the socket unseen.
	Rings uint32
}

// Sole reports whether nobody but the process that connected can hold the client's end.
func (h Holders) Sole() bool { return h.Own > 0 && h.Others == 0 && h.Rings == 0 }

// AskHolders asks who holds the client's end of a connection, in the bytes of struct holders.
func AskHolders(b *Binding) []byte {
	raw := binary.NativeEndian.AppendUint64(nil, b.OpenFile)
	raw = binary.NativeEndian.AppendUint64(raw, b.Task.Process.StartBoottime)
	raw = binary.NativeEndian.AppendUint32(raw, b.Task.Process.TGID)
	return append(raw, make([]byte, HoldersSize-len(raw))...)
}

// DecodeHolders reads the answer.
func DecodeHolders(raw []byte) (h Holders, err error) {
	if len(raw) != HoldersSize {
		return h, fmt.Errorf("%w: holders of %d bytes, want %d", ErrMalformed, len(raw), HoldersSize)
	}
	r := reader(raw[20:]) // behind the question
	h.Own, h.Others, h.OtherTGID, h.Rings = r.u32(), r.u32(), r.u32(), r.u32()
	return h, nil
}
