// SPDX-License-Identifier: Apache-2.0

// Package attest joins what the kernel recorded of a caller, its lineage, and the digest of
// its program into selectors.Facts. What can not be told soundly stays empty; what changes
// while it is being looked at is refused.
package attest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/code"
	"github.com/assay-id/assay/agent/digest"
	"github.com/assay-id/assay/agent/lineage"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Sensor is the kernel's side: bpf.Sensor, or caller.Peers at T3.
type Sensor interface {
	process.Tasks
	Task(pidfd int) (record.Task, error)
	code.Files
	Exec(pidfd int, execID uint64) (record.ExecInfo, error)
	Code(pidfd int) (record.Code, error)
	Now(key selectors.ProcessKey) (record.Now, error)
	CgroupPath(id uint64) (string, error)
	Tier() selectors.Tier
}

// Attestor attests processes of this node. It is safe for concurrent use.
type Attestor struct {
	sensor  Sensor
	hasher  *digest.Hasher
	code    *code.Reader
	log     *slog.Logger
	users   names
	groups  names
	cgroups cgroupPaths
	unknown unknownImages

	arguments argumentFiles
}

// rememberedImages bounds the digests that are kept, at about 200 bytes each.
const rememberedImages = 1 << 16

// New returns an Attestor over the sensor. Close it.
func New(sensor Sensor, log *slog.Logger) *Attestor {
	hasher, err := digest.New(rememberedImages)
	if err != nil {
		log.Warn("digests take more time than they need", "because", err)
	}
	return &Attestor{sensor: sensor, hasher: hasher, code: code.New(sensor), log: log,
		users: names{path: "/etc/passwd"}, groups: names{path: "/etc/group"}, cgroups: cgroupPaths{find: sensor.CgroupPath}}
}

// Close lets go of the programs that are watched for writes.
func (a *Attestor) Close() error { return a.hasher.Close() }

// Workload is one attested caller.
type Workload struct {
	facts  selectors.Facts
	set    selectors.Set
	caller *caller.Caller
}

// Facts returns what is known of the caller.
func (w *Workload) Facts() *selectors.Facts { return &w.facts }

// Selectors returns what Facts derive to.
func (w *Workload) Selectors() selectors.Set { return w.set }

// Check returns a *caller.Refusal once the caller is no longer who was attested, alone on its connection.
func (w *Workload) Check() error { return w.caller.Check() }

// Changed returns a channel that is closed when something happens to the caller that Check
// should look at.
func (w *Workload) Changed() <-chan struct{} { return w.caller.Changed() }

// Done is closed when the caller has exited or its connection has ended.
func (w *Workload) Done() <-chan struct{} { return w.caller.Done() }

// Caller attests the process on the other end of the gRPC connection that ctx belongs to.
// A caller that can not be told for sure is a *caller.Refusal. Every reading is of the image
// that connected; whether it still holds the connection is for Workload.Check before a push.
func (a *Attestor) Caller(ctx context.Context) (*Workload, error) {
	c, err := caller.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	now, err := c.Now()
	if err != nil {
		return nil, err
	}
	task := c.Task() // as it was at connect, but for what was done to the process since
	task.Integrity = now.Integrity
	facts, err := a.facts(ctx, subject{c.Process(), &task, c.Credentials(), c.CgroupID(), c.Tier()})
	if err != nil {
		return nil, err
	}
	return &Workload{facts: *facts, set: selectors.Derive(facts), caller: c}, nil
}

// PID tells what is known of a running process: what it would be attested as if it called now.
func (a *Attestor) PID(ctx context.Context, pid int) (*selectors.Facts, error) {
	ctx, letGo := context.WithCancel(ctx)
	defer letGo()
	r, err := a.Process(ctx, pid)
	if err != nil {
		return nil, err
	}
	return r.Facts(), nil
}

// subject is a process with what the kernel says of it.
type subject struct {
	process     *process.Process
	task        *record.Task
	credentials record.Credentials
	cgroup      uint64
	tier        selectors.Tier
}

func (a *Attestor) facts(ctx context.Context, s subject) (*selectors.Facts, error) {
	pid, task := s.task.Process.TGID, s.task
	f := &selectors.Facts{
		Process:          task.Process,
		Tier:             s.tier,
		Observed:         task.Flags.Has(record.Observed),
		LineageTruncated: task.Flags.Has(record.Truncated) || task.Flags.Has(record.LineageUnknown),
		Cgroup:           selectors.Cgroup{ID: s.cgroup},
		Integrity:        integrity(task.Integrity),
		Credentials:      credentials(&s.credentials),
		Namespaces:       namespaces(&s.credentials.Namespaces),
	}
	if s.tier > selectors.TierT3 { // what /proc shows now is not how it was executed
		f.Exec = execution(task)
	}
	var err error
	if f.Executable, err = a.hasher.Executable(ctx, s.process, image(task)); err != nil && !errors.Is(err, digest.ErrNoDigest) {
		return nil, fmt.Errorf("digest of the caller's program: %w", err)
	} else if err != nil {
		a.log.Info("a caller has no digest", "pid", pid, "reason", err)
	}
	if err := a.execve(s.process, f); err != nil {
		return nil, err
	}
	if f.Code, err = a.mapped(s.process, task); err != nil {
		return nil, err
	}
	if f.Cgroup.Path, err = a.cgroups.path(s.cgroup); err != nil {
		a.log.Info("a caller's cgroup has no path", "pid", pid, "cgroup", s.cgroup, "reason", err)
	}
	if f.Cgroup.V1Path, err = s.process.V1Cgroup(); err != nil {
		return nil, err
	}
	if f.Credentials.SecurityLabel, err = s.process.SecurityLabel(); err != nil {
		return nil, err
	}
	groups, known := s.credentials.Groups.List()
	if !known {
		if groups, err = s.process.SupplementaryGroups(); err != nil {
			return nil, err
		}
	}
	a.nameCredentials(&f.Credentials, groups)
	if f.Namespaces.Known && f.Namespaces.HostUser { // elsewhere a path may lead to file systems of the process's own making
		if f.ArgumentFile, err = a.arguments.of(s.process); err != nil {
			return nil, err
		}
	}
	f.Ancestors = lineage.Resolve(ctx, chain(task), programs{a})
	return f, nil
}

// execve adds what the kernel knows of the execve beside the task's record.
func (a *Attestor) execve(p *process.Process, f *selectors.Facts) error {
	var info record.ExecInfo
	err := p.Ask(func(pidfd int) (err error) {
		info, err = a.sensor.Exec(pidfd, f.Process.ExecID)
		return err
	})
	if errors.Is(err, record.ErrNoRecord) {
		return nil // there is nothing, or another image: Check tells
	} else if err != nil {
		return err
	}
	a.kernelDigests(f, &info)
	if !f.Exec.Script || !f.Namespaces.Known || !f.Namespaces.HostUser { // elsewhere everybody is root
		return nil
	}
	f.Exec.ScriptFile, err = a.code.Script(p, script(&info))
	if errors.Is(err, code.ErrNoScript) {
		a.log.Info("a caller's script has no digest", "pid", f.Process.TGID, "reason", err)
		return nil
	}
	return err
}

// kernelDigests adds what the kernel itself computed of the program. A digest of the kernel that
// differs from ours means that one of them is not of what runs.
func (a *Attestor) kernelDigests(f *selectors.Facts, info *record.ExecInfo) {
	if info.Verity != nil {
		f.Executable.FSVerity = *info.Verity
	}
	if info.IMA != nil && !f.Executable.SHA256.IsZero() {
		if f.Executable.IMA = *info.IMA == f.Executable.SHA256; !f.Executable.IMA {
			a.log.Warn("the kernel's digest of a program is another one than that of the file, so it has none", "pid", f.Process.TGID, "ima", info.IMA, "file", f.Executable.SHA256)
			f.Executable.SHA256 = selectors.Digest{}
		}
	}
}

// mapped returns what the process executes besides its program.
func (a *Attestor) mapped(p *process.Process, task *record.Task) (selectors.Code, error) {
	var list record.Code
	err := p.Ask(func(pidfd int) (err error) {
		list, err = a.sensor.Code(pidfd)
		return err
	})
	if err != nil {
		return selectors.Code{}, err
	}
	return a.code.Read(p, list, task.Executable)
}

// task returns the kernel's record of a pinned process as it is now.
func (a *Attestor) task(p *process.Process) (task record.Task, err error) {
	err = p.Ask(func(pidfd int) error {
		task, err = a.sensor.Task(pidfd)
		return err
	})
	return task, err
}

func (a *Attestor) nameCredentials(c *selectors.Credentials, groups []uint32) {
	c.User, c.Group = a.users.lookup(c.UID), a.groups.lookup(c.GID)
	for _, gid := range groups {
		c.SupplementaryGroups = append(c.SupplementaryGroups, selectors.Group{GID: gid, Name: a.groups.lookup(gid)})
	}
}
