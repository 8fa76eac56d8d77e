// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"encoding/hex"
	"fmt"
)

// Tier is the strength of the kernel evidence that a fact stands on; see docs/evidence.md.
// Higher is stronger. The zero Tier is "no evidence" and never satisfies anything.
type Tier uint8

// The tiers, weakest first.
const (
	TierNone Tier = iota
	TierT3        // SO_PEERPIDFD and /proc
	TierT2        // tracepoints and cgroup programs
	TierT1        // BPF LSM programs
)

// String returns "t1", "t2", "t3" or "none".
func (t Tier) String() string {
	switch t {
	case TierT1:
		return "t1"
	case TierT2:
		return "t2"
	case TierT3:
		return "t3"
	}
	return "none"
}

// ParseTier reads what String writes, "none" excepted.
func ParseTier(s string) (Tier, bool) {
	for t := TierT3; t <= TierT1; t++ {
		if t.String() == s {
			return t, true
		}
	}
	return TierNone, false
}

// ProcessKey names one process image for all time on one boot. A PID alone never does:
// PIDs are used again, and execve keeps the PID while the program changes.
type ProcessKey struct {
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
	// TGID is the process ID in the initial PID namespace.
	TGID uint32 `json:"tgid"`
	// StartBoottime is task_struct.start_boottime of the group leader, in nanoseconds since boot.
	StartBoottime uint64 `json:"start_boottime"`
	// ExecID numbers the executed image; the sensor gives a new one at every execve and
	// never the same one twice in a boot. Zero means that no record exists.
	ExecID uint64 `json:"exec_id"`
}

// Digest is a SHA-256 digest.
type Digest [32]byte

// String returns 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether the digest is unknown.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes what String does.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("a SHA-256 has 64 hexadecimal digits, not %d", len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Facts is everything known of one process at one moment. Unknown fields are zero, and a
// zero field yields no selector. Each field tells where its truth comes from.
type Facts struct {
	// Process is the caller's key, copied by the kernel onto the connection when it was made.
	Process ProcessKey `json:"process"`
	// Tier is the weakest tier that any other field relies on.
	Tier Tier `json:"tier"`
	// Executable is the running program: digest and path from the process's own exe link,
	// read while the kernel's record said that this exec is still the running one.
	Executable Executable `json:"executable"`
	// Credentials are those of the process when it connected (kernel record); the
	// supplementary groups come from /proc under the same re-check.
	Credentials Credentials `json:"credentials"`
	// Cgroup is where the process was when it connected (kernel record).
	Cgroup Cgroup `json:"cgroup"`
	// Ancestors are the images this one descends from, nearest first (kernel record).
	Ancestors []Ancestor `json:"ancestors,omitempty"`
	// LineageTruncated says that the process has more ancestors than the kernel record holds.
	LineageTruncated bool `json:"lineage_truncated,omitempty"`
	// Observed says that the sensor saw this image being executed; false for images that
	// were running before the sensor ("seeded").
	Observed bool `json:"observed"`
	// Exec is how the image was executed (kernel record).
	Exec Exec `json:"exec"`
	// Namespaces are those of the process when it connected (kernel record).
	Namespaces Namespaces `json:"namespaces"`
	// Integrity is what others did to the process (kernel record, sticky and inherited).
	Integrity Integrity `json:"integrity"`
	// Code is what the process mapped to execute besides its program (kernel record).
	Code Code `json:"code"`
	// ArgumentFile is the first of the process's arguments that names a regular file, as that
	// was when it was asked: the process's own word (/proc/PID/cmdline).
	ArgumentFile Executable `json:"argument_file"`
}

// Executable is a program file as it was executed.
type Executable struct {
	// Path is where the process's mount namespace shows the file; a name, not a proof.
	Path string `json:"path,omitempty"`
	// SHA256 is the digest of the file's content; zero when it can not be told soundly.
	SHA256 Digest `json:"sha256"`
	// Size is the file's length in bytes.
	Size int64 `json:"size,omitempty"`
	// IMA says that the kernel computed the same digest itself at execve.
	IMA bool `json:"ima,omitempty"`
	// FSVerity is the fs-verity digest that the kernel enforces for the file (SHA-256 Merkle
	// tree; not SHA256), zero if it has none.
	FSVerity Digest `json:"fsverity,omitzero"`
}

// Credentials are a process's identity to the kernel, in the initial user namespace.
type Credentials struct {
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	User  string `json:"user,omitempty"`  // name of UID in the host's user database, "" if none
	Group string `json:"group,omitempty"` // name of GID in the host's group database, "" if none
	// Supplementary groups.
	SupplementaryGroups []Group `json:"supplementary_groups,omitempty"`

	// Known says that the fields below were read; without it they mean nothing.
	Known bool `json:"known,omitempty"`
	// Effective and Permitted are capability sets, bit n for capability n (linux/capability.h).
	Effective uint64 `json:"effective,omitempty"`
	Permitted uint64 `json:"permitted,omitempty"`
	// NoNewPrivs is PR_SET_NO_NEW_PRIVS; Seccomp the mode of PR_SET_SECCOMP (0 disabled, 1
	// strict, 2 filter).
	NoNewPrivs bool  `json:"no_new_privs,omitempty"`
	Seccomp    uint8 `json:"seccomp,omitempty"`
	// LoginUID and SessionID are the audit system's, Unset when it set none.
	LoginUID  uint32 `json:"login_uid,omitempty"`
	SessionID uint32 `json:"session_id,omitempty"`
	// SecurityLabel is the LSM's label of the process (/proc/PID/attr/current), "" if none.
	SecurityLabel string `json:"security_label,omitempty"`
}

// Unset is the audit system's value for "none" (AUDIT_UID_UNSET, AUDIT_SID_UNSET).
const Unset = ^uint32(0)

// Exec is how an image was executed.
type Exec struct {
	// Deleted: the file had no name left; MemoryFile: it was a memfd or like it.
	Deleted    bool `json:"deleted,omitempty"`
	MemoryFile bool `json:"memory_file,omitempty"`
	// SetID: by a set-user-ID, set-group-ID or capability-carrying file.
	SetID bool `json:"set_id,omitempty"`
	// FSMagic is the type of the file system that the program lay on (linux/magic.h), 0 if unknown.
	FSMagic uint64 `json:"fs_magic,omitempty"`
	// Script: the program is the interpreter of the file that was executed. ScriptFile is that
	// file, with a digest only where it could be bound to the one that the kernel saw.
	Script     bool       `json:"script,omitempty"`
	ScriptFile Executable `json:"script_file"`
}

// Namespaces tell which of a process's namespaces are the host's.
type Namespaces struct {
	// Known says that they were read.
	Known                         bool `json:"known,omitempty"`
	HostPID, HostMount, HostNet   bool
	HostUser, HostCgroup, HostIPC bool
}

// Integrity tells what other processes did to one, since its image was executed.
type Integrity struct {
	// SeesWrites says that writes of memory could not have gone unseen, SeesTracing that a
	// debugger could not, SeesAll that nothing could. Without them, a flag that is not set means
	// nothing.
	SeesWrites  bool `json:"sees_writes,omitempty"`
	SeesTracing bool `json:"sees_tracing,omitempty"`
	SeesAll     bool `json:"sees_all,omitempty"`
	// Traced: a debugger attached. MemoryWritten: another process wrote its memory.
	Traced        bool `json:"traced,omitempty"`
	MemoryWritten bool `json:"memory_written,omitempty"`
	// MemoryRead: another process read its memory, or opened it, or was allowed to.
	MemoryRead bool `json:"memory_read,omitempty"`
	// DescriptorTaken: another process took a descriptor by pidfd_getfd.
	DescriptorTaken bool `json:"descriptor_taken,omitempty"`
}

// Code is what a process mapped executable besides its program.
type Code struct {
	// Known says that the sensor saw every mapping and that each file could be digested.
	Known bool `json:"known,omitempty"`
	// Libraries is the SHA-256 over the sorted SHA-256 digests of the distinct files.
	Libraries Digest `json:"libraries"`
	// Files is their number.
	Files int `json:"files,omitempty"`
	// Anonymous: memory that is not a file's was made executable (JIT, injected code).
	Anonymous bool `json:"anonymous,omitempty"`
}

// Group is one group of the host.
type Group struct {
	GID  uint32 `json:"gid"`
	Name string `json:"name,omitempty"`
}

// Cgroup is a process's control group.
type Cgroup struct {
	// ID is the kernel's cgroup v2 id, the inode number of its directory.
	ID uint64 `json:"id"`
	// Path is relative to the root of the unified hierarchy (v2), with a leading slash.
	Path string `json:"path,omitempty"`
	// V1Path is the path in systemd's own hierarchy on hosts in hybrid or legacy mode, where
	// units and containers show there; from /proc under the re-check. Empty on v2 hosts.
	V1Path string `json:"v1_path,omitempty"`
}

// paths are the paths that say in which unit or container the process is, the truest first.
func (c *Cgroup) paths() []string {
	if c.V1Path != "" {
		return []string{c.Path, c.V1Path}
	}
	return []string{c.Path}
}

// Ancestor is an image that the process descends from, by fork or by execve.
type Ancestor struct {
	ExecID uint64 `json:"exec_id"`
	TGID   uint32 `json:"tgid"`
	// Observed says that the sensor saw this image being executed.
	Observed bool `json:"observed"`
	// Executable has a digest only if it was read while that image was running.
	Executable Executable `json:"executable"`
}
