// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/assay-id/assay/selectors"
)

// Tampering is what a process did to another one, or was allowed to do at once.
type Tampering uint32

// The kinds of tampering; see wire.h.
const (
	PtraceAttached  Tampering = 1 << iota // a debugger was attached
	MemoryWritten                         // its memory was written from outside
	MemoryRead                            // its memory was read (T1)
	MemoryOpened                          // its /proc/PID/mem was opened (T1)
	DescriptorTaken                       // one of its descriptors was taken (T1)
	Accessed                              // something else with the rights of a debugger (T1)
	knownTampering  = 1<<iota - 1
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

// Unset is the login user or session of a process that has none.
const Unset = ^uint32(0)

// Credentials are a process's identity to the kernel; numbers of the initial user namespace.
type Credentials struct {
	// UID and GID are the effective ones.
	UID, GID           uint32
	RealUID, RealGID   uint32
	SavedUID, SavedGID uint32
	FSUID, FSGID       uint32
	// Permitted and Effective are sets of capabilities, 1 << unix.CAP_…, as they hold in the
	// process's own user namespace.
	Permitted, Effective uint64
	// LoginUID and SessionID are those of audit(7), or Unset.
	LoginUID, SessionID uint32
	NoNewPrivs          bool
	// Seccomp is 0 off, 1 strict, 2 filter.
	Seccomp    uint32
	Namespaces Namespaces
	Groups     Groups
}

// maxGroups is how many supplementary groups a record holds.
const maxGroups = 32

// Groups are the supplementary groups of a process. Values can be compared, also those of which
// not all is known; the zero Groups is unknown.
type Groups struct {
	known bool
	count uint32
	gids  [maxGroups]uint32
}

// GroupsOf holds a list that was read elsewhere.
func GroupsOf(gids []uint32) Groups {
	g := Groups{known: len(gids) <= maxGroups, count: uint32(len(gids))}
	copy(g.gids[:], gids)
	return g
}

// List returns the group IDs in ascending order; known is false when there are more than the
// record holds (32), or the kernel could not tell.
func (g *Groups) List() (gids []uint32, known bool) {
	if !g.known {
		return nil, false
	}
	return g.gids[:g.count], true
}

func decodeGroups(r *reader) Groups {
	g := Groups{count: r.u32()}
	g.known = g.count <= maxGroups
	for i := range g.gids {
		g.gids[i] = r.u32()
	}
	return g
}

// Namespace is one namespace of a process.
type Namespace struct {
	Inode uint32 // of nsfs, as in /proc/PID/ns
	Host  bool   // it is the initial one; means something only if Namespaces.Known
}

// Namespaces are those that a process is in.
type Namespaces struct {
	User, PID, Mount, Network, Cgroup, IPC, UTS Namespace
	// Known says that the sensor read all of them and knows all of the host's.
	Known bool
}

// Now is how a process is at the moment of a question.
type Now struct {
	// Known is false when no hook can tell here, or the process is gone.
	Known       bool
	CgroupID    uint64
	Credentials Credentials
}

// ExecInfo is what is known of an execve beside the task's record. What the kernel could not
// tell is zero.
type ExecInfo struct {
	// Path was given to execve, cut to 255 bytes: a name, relative to a directory that is not known.
	Path string
	// Script is the file given to execve, if ScriptKnown and the task's flags say Script.
	Script      File
	ScriptKnown bool
	// ScriptToken and ScriptWGen are the script's as FileState tells them, at a moment when nobody
	// could have it open for writing. Zero ScriptToken: unknown.
	ScriptToken, ScriptWGen uint64
	// IMA is the SHA-256 that the kernel computed of the executable's content. Verity is the
	// fs-verity digest (SHA-256 of a Merkle tree's descriptor), for files that are sealed by it.
	IMA, Verity *selectors.Digest
}

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

// namespaces are the numbers of struct namespaces in wire.h.
type namespaces struct{ user, pid, mnt, net, cgroup, ipc, uts uint32 }

func decodeNamespaces(r *reader) namespaces {
	n := namespaces{r.u32(), r.u32(), r.u32(), r.u32(), r.u32(), r.u32(), r.u32()}
	r.u32()
	return n
}

// markHost tells which namespaces are the host's. A number is one namespace as long as
// that lives, and the initial ones live for ever.
func (s *Sensor) markHost(n *Namespaces) {
	n.Known = true
	for _, c := range []struct {
		have *Namespace
		host uint32
	}{
		{&n.User, s.host.user}, {&n.PID, s.host.pid}, {&n.Mount, s.host.mnt}, {&n.Network, s.host.net},
		{&n.Cgroup, s.host.cgroup}, {&n.IPC, s.host.ipc}, {&n.UTS, s.host.uts},
	} {
		n.Known = n.Known && c.host != 0 && c.have.Inode != 0
		c.have.Host = c.have.Inode == c.host
	}
}

func decodeCredentials(r *reader) Credentials {
	c := Credentials{Permitted: r.u64(), Effective: r.u64()}
	c.UID, c.GID, c.RealUID, c.RealGID = r.u32(), r.u32(), r.u32(), r.u32()
	c.SavedUID, c.SavedGID, c.FSUID, c.FSGID = r.u32(), r.u32(), r.u32(), r.u32()
	c.LoginUID, c.SessionID = r.u32(), r.u32()
	c.NoNewPrivs, c.Seccomp = r.u32() != 0, r.u32()
	n := decodeNamespaces(r)
	c.Namespaces = Namespaces{
		User: Namespace{Inode: n.user}, PID: Namespace{Inode: n.pid}, Mount: Namespace{Inode: n.mnt},
		Network: Namespace{Inode: n.net}, Cgroup: Namespace{Inode: n.cgroup}, IPC: Namespace{Inode: n.ipc}, UTS: Namespace{Inode: n.uts},
	}
	c.Groups = decodeGroups(r)
	r.u32()
	return c
}

func decodeNow(r *reader) (n Now, start uint64) {
	start = r.u64()
	n.CgroupID, n.Credentials = r.u64(), decodeCredentials(r)
	if start == 0 {
		return Now{}, 0
	}
	n.Known = true
	return n, start
}

// The digest algorithm of fs-verity and of IMA that is reported.
const (
	veritySHA256 = 1 // FS_VERITY_HASH_ALG_SHA256
	imaSHA256    = 4 // HASH_ALGO_SHA256
)

func decodeExec(raw []byte) (x ExecInfo, execID uint64, err error) {
	if len(raw) != execSize {
		return ExecInfo{}, 0, fmt.Errorf("%w: an execve of %d bytes, want %d", ErrMalformed, len(raw), execSize)
	}
	r := reader(raw)
	execID = r.u64()
	x = ExecInfo{Script: decodeFile(&r), ScriptToken: r.u64(), ScriptWGen: r.u64()}
	x.ScriptKnown = x.Script.Inode != 0
	ima, verity := int32(r.u32()), r.u32()
	if verity == veritySHA256|32<<16 {
		d := selectors.Digest(r[:32])
		x.Verity = &d
	}
	r = r[32:]
	if ima == imaSHA256+1 {
		d := selectors.Digest(r[:32])
		x.IMA = &d
	}
	r = r[32:]
	path, _, _ := bytes.Cut(r, []byte{0})
	x.Path = string(path)
	return x, execID, nil
}

// counters are what the programs count; see sensor_state in wire.h.
type counters struct {
	nextExecID, seedTime, seeded, eventsLost, recordsLost uint64
	host                                                  namespaces
	refused                                               uint64
}

func decodeState(raw []byte) (c counters, err error) {
	if len(raw) != stateSize {
		return c, fmt.Errorf("%w: a state of %d bytes, want %d", ErrMalformed, len(raw), stateSize)
	}
	r := reader(raw)
	c = counters{nextExecID: r.u64(), seedTime: r.u64(), seeded: r.u64(), eventsLost: r.u64(), recordsLost: r.u64()}
	r.u64() // next_token
	c.host = decodeNamespaces(&r)
	c.refused = r.u64()
	return c, nil
}
