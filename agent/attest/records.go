// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"github.com/assay-id/assay/agent/code"
	"github.com/assay-id/assay/agent/digest"
	"github.com/assay-id/assay/agent/lineage"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// The kernel's records in the words of the packages that read them.

func image(t *record.Task) digest.Image {
	return digest.Image{Inode: t.Executable.Inode, FSMagic: t.Executable.FSMagic, Writable: t.Flags.Has(record.MemoryFile)}
}

func chain(t *record.Task) []lineage.Image {
	out := make([]lineage.Image, len(t.Ancestors))
	for i, anc := range t.Ancestors {
		out[i] = lineage.Image{Holder: anc.Process, Observed: anc.Flags.Has(record.Observed)}
	}
	return out
}

func execution(t *record.Task) selectors.Exec {
	return selectors.Exec{
		Deleted: t.Flags.Has(record.Deleted), MemoryFile: t.Flags.Has(record.MemoryFile), SetID: t.Flags.Has(record.SecureExec),
		FSMagic: t.Executable.FSMagic, Script: t.Flags.Has(record.Script),
	}
}

func script(x *record.ExecInfo) code.Script {
	return code.Script{Path: x.Path, Token: x.ScriptToken, WGen: x.ScriptWGen, FSMagic: x.Script.FSMagic}
}

// mayWrite are the kinds of access after which memory can be written and T1 does not see it: its
// hook runs when access is granted, at PTRACE_ATTACH and at open(2) of /proc/PID/mem.
const mayWrite = record.PtraceAttached | record.MemoryOpened | record.Accessed

func integrity(i record.Integrity) selectors.Integrity {
	return selectors.Integrity{
		SeesAll: i.Known, SeesWrites: i.Sees.Has(record.MemoryWritten) && i.Seen&mayWrite == 0, SeesTracing: i.Sees.Has(record.PtraceAttached),
		Traced: i.Seen.Has(record.PtraceAttached), MemoryWritten: i.Seen.Has(record.MemoryWritten),
		MemoryRead:      i.Seen&(record.MemoryRead|record.MemoryOpened|record.Accessed) != 0,
		DescriptorTaken: i.Seen.Has(record.DescriptorTaken),
	}
}

func credentials(c *record.Credentials) selectors.Credentials {
	return selectors.Credentials{
		UID: c.UID, GID: c.GID, Known: true, Effective: c.Effective, Permitted: c.Permitted,
		NoNewPrivs: c.NoNewPrivs, Seccomp: uint8(c.Seccomp), LoginUID: c.LoginUID, SessionID: c.SessionID,
	}
}

func namespaces(n *record.Namespaces) selectors.Namespaces {
	return selectors.Namespaces{
		Known:   n.Known,
		HostPID: n.PID.Host, HostMount: n.Mount.Host, HostNet: n.Network.Host,
		HostUser: n.User.Host, HostCgroup: n.Cgroup.Host, HostIPC: n.IPC.Host,
	}
}
