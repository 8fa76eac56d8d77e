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
	"github.com/assay-id/assay/agent/digest"
	"github.com/assay-id/assay/agent/lineage"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/selectors"
)

// Sensor is the kernel's side (bpf.Sensor).
type Sensor interface {
	process.Tasks
	Task(pidfd int) (bpf.Task, error)
	CgroupPath(id uint64) (string, error)
	Tier() selectors.Tier
}

// Attestor attests processes of this node. It is safe for concurrent use.
type Attestor struct {
	sensor  Sensor
	hasher  *digest.Hasher
	log     *slog.Logger
	users   names
	groups  names
	cgroups cgroupPaths
	unknown unknownImages
}

// rememberedImages bounds the digests that are kept, at about 200 bytes each.
const rememberedImages = 1 << 16

// New returns an Attestor over the sensor. Close it.
func New(sensor Sensor, log *slog.Logger) *Attestor {
	hasher, err := digest.New(rememberedImages)
	if err != nil {
		log.Warn("digests take more time than they need", "because", err)
	}
	return &Attestor{sensor: sensor, hasher: hasher, log: log,
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

// Changed yields when something happened to the caller that Check should look at.
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
	task := c.Task()
	facts, err := a.facts(ctx, c.Process(), &task, c.CgroupID())
	if err != nil {
		return nil, err
	}
	facts.Tier = c.Tier()
	facts.Credentials.UID, facts.Credentials.GID = c.UID(), c.GID()
	a.nameCredentials(&facts.Credentials)
	return &Workload{facts: *facts, set: selectors.Derive(facts), caller: c}, nil
}

// PID tells what is known of a running process: what it would be attested as if it called now.
func (a *Attestor) PID(ctx context.Context, pid int) (*selectors.Facts, error) {
	p, err := process.PinPID(a.sensor, pid)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	task, err := a.task(p)
	if err != nil {
		return nil, err
	}
	facts, err := a.facts(ctx, p, &task, task.CgroupID)
	if err != nil {
		return nil, err
	}
	facts.Tier = a.sensor.Tier()
	facts.Credentials.UID, facts.Credentials.GID = task.UID, task.GID
	a.nameCredentials(&facts.Credentials)
	return facts, p.Still()
}

func (a *Attestor) facts(ctx context.Context, p *process.Process, task *bpf.Task, cgroup uint64) (*selectors.Facts, error) {
	f := &selectors.Facts{
		Process:          task.Process,
		Observed:         task.Flags.Has(bpf.Observed),
		LineageTruncated: task.Flags.Has(bpf.Truncated) || task.Flags.Has(bpf.LineageUnknown),
		Cgroup:           selectors.Cgroup{ID: cgroup},
	}
	var err error
	if f.Executable, err = a.hasher.Executable(ctx, p, image(task)); err != nil && !errors.Is(err, digest.ErrNoDigest) {
		return nil, fmt.Errorf("digest of the caller's program: %w", err)
	} else if err != nil {
		a.log.Info("a caller has no digest", "pid", task.Process.TGID, "reason", err)
	}
	if f.Cgroup.Path, err = a.cgroups.path(cgroup); err != nil {
		a.log.Info("a caller's cgroup has no path", "pid", task.Process.TGID, "cgroup", cgroup, "reason", err)
	}
	if f.Cgroup.V1Path, err = p.V1Cgroup(); err != nil {
		return nil, err
	}
	groups, err := p.SupplementaryGroups()
	if err != nil {
		return nil, err
	}
	for _, gid := range groups {
		f.Credentials.SupplementaryGroups = append(f.Credentials.SupplementaryGroups, selectors.Group{GID: gid, Name: a.groups.lookup(gid)})
	}
	f.Ancestors = lineage.Resolve(ctx, chain(task), programs{a})
	return f, nil
}

// task returns the kernel's record of a pinned process as it is now.
func (a *Attestor) task(p *process.Process) (task bpf.Task, err error) {
	err = p.Ask(func(pidfd int) error {
		task, err = a.sensor.Task(pidfd)
		return err
	})
	return task, err
}

func (a *Attestor) nameCredentials(c *selectors.Credentials) {
	c.User, c.Group = a.users.lookup(c.UID), a.groups.lookup(c.GID)
}

func image(t *bpf.Task) digest.Image {
	return digest.Image{Inode: t.Executable.Inode, FSMagic: t.Executable.FSMagic, Writable: t.Flags.Has(bpf.MemoryFile)}
}

func chain(t *bpf.Task) []lineage.Image {
	out := make([]lineage.Image, len(t.Ancestors))
	for i, anc := range t.Ancestors {
		out[i] = lineage.Image{Holder: anc.Process, Observed: anc.Flags.Has(bpf.Observed)}
	}
	return out
}
