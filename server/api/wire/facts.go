// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"

	evidencev1 "github.com/assay-id/assay/proto/evidence"
	"github.com/assay-id/assay/selectors"
)

// ReadFacts reads what an agent states about a process. What is absent stays unknown.
func ReadFacts(p *evidencev1.Facts) (*selectors.Facts, error) {
	if p.GetProcess() == nil {
		return nil, errors.New("the facts name no process")
	}
	if p.GetCredentials() == nil {
		return nil, errors.New("the facts name no credentials") // absent must not read as root
	}
	k := p.Process
	f := &selectors.Facts{
		Process:          selectors.ProcessKey{BootID: k.BootId, TGID: k.Tgid, StartBoottime: k.StartBoottime, ExecID: k.ExecId},
		Tier:             tierFromProto(p.Tier),
		Credentials:      credentialsFromProto(p.Credentials),
		Cgroup:           selectors.Cgroup{ID: p.GetCgroup().GetId(), Path: p.GetCgroup().GetPath(), V1Path: p.GetCgroup().GetV1Path()},
		LineageTruncated: p.LineageTruncated,
		Observed:         p.Observed,
		Namespaces:       namespacesFromProto(p.GetNamespaces()),
	}
	if i := p.GetIntegrity(); i != nil {
		f.Integrity = selectors.Integrity{SeesWrites: i.SeesWrites, SeesTracing: i.SeesTracing, SeesAll: i.SeesAll, Traced: i.Traced, MemoryWritten: i.MemoryWritten,
			MemoryRead: i.MemoryRead, DescriptorTaken: i.DescriptorTaken}
	}
	var errs []error
	executable := func(p *evidencev1.Executable) selectors.Executable {
		e, err := executableFromProto(p)
		errs = append(errs, err)
		return e
	}
	f.Executable, f.ArgumentFile = executable(p.Executable), executable(p.ArgumentFile)
	for _, a := range p.Ancestors {
		f.Ancestors = append(f.Ancestors, selectors.Ancestor{ExecID: a.GetExecId(), TGID: a.GetTgid(), Observed: a.GetObserved(), Executable: executable(a.GetExecutable())})
	}
	if x := p.GetExec(); x != nil {
		f.Exec = selectors.Exec{Deleted: x.Deleted, MemoryFile: x.MemoryFile, SetID: x.SetId, FSMagic: x.FsMagic, Script: x.Script, ScriptFile: executable(x.ScriptFile)}
	}
	if c := p.GetCode(); c != nil {
		d, err := digestFromProto(c.Libraries)
		errs = append(errs, err)
		f.Code = selectors.Code{Known: c.Known, Libraries: d, Files: int(c.Files), Anonymous: c.Anonymous}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

func tierFromProto(t evidencev1.Tier) selectors.Tier {
	switch t {
	case evidencev1.Tier_TIER_T1:
		return selectors.TierT1
	case evidencev1.Tier_TIER_T2:
		return selectors.TierT2
	case evidencev1.Tier_TIER_T3:
		return selectors.TierT3
	}
	return selectors.TierNone
}

func credentialsFromProto(c *evidencev1.Credentials) selectors.Credentials {
	out := selectors.Credentials{
		UID: c.Uid, GID: c.Gid, User: c.User, Group: c.Group,
		Known: c.Known, Effective: c.Effective, Permitted: c.Permitted, NoNewPrivs: c.NoNewPrivs, Seccomp: uint8(min(c.Seccomp, 255)),
		LoginUID: c.LoginUid, SessionID: c.SessionId, SecurityLabel: c.SecurityLabel,
	}
	for _, g := range c.SupplementaryGroups {
		out.SupplementaryGroups = append(out.SupplementaryGroups, selectors.Group{GID: g.GetGid(), Name: g.GetName()})
	}
	return out
}

func namespacesFromProto(n *evidencev1.Namespaces) selectors.Namespaces {
	return selectors.Namespaces{Known: n.GetKnown(), HostPID: n.GetHostPid(), HostMount: n.GetHostMount(), HostNet: n.GetHostNet(),
		HostUser: n.GetHostUser(), HostCgroup: n.GetHostCgroup(), HostIPC: n.GetHostIpc()}
}

func executableFromProto(p *evidencev1.Executable) (selectors.Executable, error) {
	sum, err := digestFromProto(p.GetSha256())
	verity, errVerity := digestFromProto(p.GetFsverity())
	return selectors.Executable{Path: p.GetPath(), Size: p.GetSize(), SHA256: sum, IMA: p.GetIma(), FSVerity: verity}, errors.Join(err, errVerity)
}

// digestFromProto reads a SHA-256 digest; none is the zero Digest.
func digestFromProto(b []byte) (d selectors.Digest, err error) {
	if len(b) != 0 && len(b) != len(d) {
		return d, fmt.Errorf("a SHA-256 digest has %d bytes", len(b))
	}
	copy(d[:], b)
	return d, nil
}
