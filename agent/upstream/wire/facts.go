// SPDX-License-Identifier: Apache-2.0

package wire

import (
	evidencepb "github.com/assay-id/assay/proto/evidence"
	"github.com/assay-id/assay/selectors"
)

// Facts is what the server is told of a process: every fact, and no selector.
func Facts(f *selectors.Facts) *evidencepb.Facts {
	pb := &evidencepb.Facts{
		Process: &evidencepb.ProcessKey{BootId: f.Process.BootID, Tgid: f.Process.TGID,
			StartBoottime: f.Process.StartBoottime, ExecId: f.Process.ExecID},
		Tier:             evidencepb.Tier(f.Tier),
		Executable:       executableProto(f.Executable),
		Credentials:      credentialsProto(&f.Credentials),
		Cgroup:           &evidencepb.Cgroup{Id: f.Cgroup.ID, Path: f.Cgroup.Path, V1Path: f.Cgroup.V1Path},
		LineageTruncated: f.LineageTruncated,
		Observed:         f.Observed,
		Exec: &evidencepb.Exec{Deleted: f.Exec.Deleted, MemoryFile: f.Exec.MemoryFile, SetId: f.Exec.SetID,
			FsMagic: f.Exec.FSMagic, Script: f.Exec.Script, ScriptFile: executableProto(f.Exec.ScriptFile)},
		Namespaces: &evidencepb.Namespaces{Known: f.Namespaces.Known, HostPid: f.Namespaces.HostPID, HostMount: f.Namespaces.HostMount,
			HostNet: f.Namespaces.HostNet, HostUser: f.Namespaces.HostUser, HostCgroup: f.Namespaces.HostCgroup, HostIpc: f.Namespaces.HostIPC},
		Integrity: &evidencepb.Integrity{SeesWrites: f.Integrity.SeesWrites, SeesTracing: f.Integrity.SeesTracing, SeesAll: f.Integrity.SeesAll, Traced: f.Integrity.Traced,
			MemoryWritten: f.Integrity.MemoryWritten, MemoryRead: f.Integrity.MemoryRead, DescriptorTaken: f.Integrity.DescriptorTaken},
		Code:         &evidencepb.Code{Known: f.Code.Known, Libraries: digestProto(f.Code.Libraries), Files: uint32(f.Code.Files), Anonymous: f.Code.Anonymous},
		ArgumentFile: executableProto(f.ArgumentFile),
	}
	for _, a := range f.Ancestors {
		pb.Ancestors = append(pb.Ancestors, &evidencepb.Ancestor{ExecId: a.ExecID, Tgid: a.TGID,
			Observed: a.Observed, Executable: executableProto(a.Executable)})
	}
	return pb
}

func credentialsProto(c *selectors.Credentials) *evidencepb.Credentials {
	pb := &evidencepb.Credentials{
		Uid: c.UID, Gid: c.GID, User: c.User, Group: c.Group,
		Known: c.Known, Effective: c.Effective, Permitted: c.Permitted, NoNewPrivs: c.NoNewPrivs, Seccomp: uint32(c.Seccomp),
		LoginUid: c.LoginUID, SessionId: c.SessionID, SecurityLabel: c.SecurityLabel,
	}
	for _, g := range c.SupplementaryGroups {
		pb.SupplementaryGroups = append(pb.SupplementaryGroups, &evidencepb.Group{Gid: g.GID, Name: g.Name})
	}
	return pb
}

func executableProto(x selectors.Executable) *evidencepb.Executable {
	return &evidencepb.Executable{Path: x.Path, Size: x.Size, Sha256: digestProto(x.SHA256), Ima: x.IMA, Fsverity: digestProto(x.FSVerity)}
}

// digestProto leaves an unknown digest out.
func digestProto(d selectors.Digest) []byte {
	if d.IsZero() {
		return nil
	}
	return d[:]
}
