// SPDX-License-Identifier: Apache-2.0

// Package hooks puts one BPF object file into the kernel: its maps, and its programs on their
// hooks one by one, so that a hook which this kernel lacks costs that hook only. All of it is pinned in a
// folder, where the next process finds it. Which hooks are needed, and what for, package bpf says.
package hooks

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// State is whether a hook works.
type State string

// The states of a hook.
const (
	On          State = "on"
	Off         State = "off" // not needed, because a stronger one is on
	Unavailable State = "unavailable"
)

// Hook is one place in the kernel where a program of the object wants to run.
type Hook struct {
	// Name is the program's section, for example "tp_btf/sched_process_exec". Two programs may
	// sit on one hook; Program tells them apart.
	Name    string
	Program string
	State   State
	// Detail says why a hook is not on.
	Detail string
}

// Object is an object file in the kernel. Programs go by their names in the C code; those that
// are of use only together are a set. Methods that change it must not overlap with others.
type Object struct {
	// Maps and Links are what is there, by the names of maps and programs; to be read. Walkers that are kept are among the links.
	Maps  map[string]*ebpf.Map
	Links map[string]link.Link

	spec   *ebpf.CollectionSpec
	dir    string
	cgroup string
	hooks  []Hook
}

// New prepares an object that is pinned in dir, which exists, and whose cgroup programs are
// attached to the mount of cgroup v2. Nothing is in the kernel yet.
func New(spec *ebpf.CollectionSpec, dir, cgroup string) *Object {
	return &Object{Maps: map[string]*ebpf.Map{}, Links: map[string]link.Link{}, spec: spec, dir: dir, cgroup: cgroup}
}

// On reports whether a program is attached.
func (o *Object) On(program string) bool { return o.Links[program] != nil }

// Section returns where a program wants to run.
func (o *Object) Section(program string) string { return o.spec.Programs[program].SectionName }

// IsLSM reports whether a program is of the kind that attaches but never runs where "bpf" is
// not in the kernel's list of running LSMs.
func (o *Object) IsLSM(program string) bool { return o.spec.Programs[program].Type == ebpf.LSM }

// Load loads a program over the shared maps, attached to nothing.
func (o *Object) Load(program string) (*ebpf.Program, error) {
	one := o.spec.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{program: one.Programs[program]}
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: o.Maps})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.DetachProgram(program), nil
}

// Attach loads, attaches and pins a set, all of it or nothing, and notes the outcome.
func (o *Object) Attach(set ...string) error {
	for i, program := range set {
		err := o.attach(program)
		if err != nil {
			o.Note(Unavailable, refuse(err).Error(), program)
			return errors.Join(fmt.Errorf("attaching %s: %w", o.Section(program), refuse(err)), o.Detach(set[:i]...))
		}
		o.Note(On, "", program)
	}
	return nil
}

func (o *Object) attach(program string) error {
	p, err := o.Load(program)
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := o.link(program, p)
	if err != nil {
		return err
	}
	if err := l.Pin(linkPin(o.dir, program)); err != nil {
		return errors.Join(err, l.Close())
	}
	o.Links[program] = l
	return nil
}

func (o *Object) link(program string, p *ebpf.Program) (link.Link, error) {
	switch spec := o.spec.Programs[program]; spec.Type {
	case ebpf.Tracing:
		return link.AttachTracing(link.TracingOptions{Program: p})
	case ebpf.LSM:
		return link.AttachLSM(link.LSMOptions{Program: p})
	case ebpf.CGroupSockAddr:
		return link.AttachCgroup(link.CgroupOptions{Path: o.cgroup, Attach: spec.AttachType, Program: p})
	default:
		return nil, fmt.Errorf("program type %v", spec.Type)
	}
}

// Detach removes a set from its hooks, and forgets that it was there.
func (o *Object) Detach(set ...string) error {
	var errs []error
	for _, program := range set {
		if l := o.Links[program]; l != nil {
			errs = append(errs, l.Unpin(), l.Close())
			delete(o.Links, program)
			o.hooks = slices.DeleteFunc(o.hooks, func(h Hook) bool { return h.Program == program })
		}
	}
	return errors.Join(errs...)
}

// Iterate runs a program that walks, once over everything.
func (o *Object) Iterate(program string) error {
	it, kept := o.Links[program].(*link.Iter)
	if !kept {
		var err error
		if it, err = o.walker(program); err != nil {
			return refuse(err)
		}
		defer it.Close()
	}
	r, err := it.Open()
	if err != nil {
		return refuse(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		return refuse(err)
	}
	return nil
}

// walker loads a program that walks.
func (o *Object) walker(program string) (*link.Iter, error) {
	p, err := o.Load(program)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return link.AttachIter(link.IterOptions{Program: p})
}

// KeepWalker pins a program that walks, for a process that may load none.
func (o *Object) KeepWalker(program string) error {
	it, err := o.walker(program)
	if err != nil {
		return refuse(err)
	}
	if err := it.Pin(linkPin(o.dir, program)); err != nil {
		return errors.Join(err, it.Close())
	}
	o.Links[program] = it
	return nil
}

// IDs are the kernel's numbers of an object's parts.
type IDs struct{ Maps, Programs, Links []uint32 }

// IDs returns the numbers of all maps, and of the programs that are attached and their links.
func (o *Object) IDs() (ids IDs, err error) {
	for name, m := range o.Maps {
		info, err := m.Info()
		if err != nil {
			return IDs{}, fmt.Errorf("map %s: %w", name, err)
		}
		id, _ := info.ID()
		ids.Maps = append(ids.Maps, uint32(id))
	}
	for program, l := range o.Links {
		info, err := l.Info()
		if err != nil {
			return IDs{}, fmt.Errorf("link %s: %w", program, err)
		}
		ids.Programs, ids.Links = append(ids.Programs, uint32(info.Program)), append(ids.Links, uint32(info.ID))
	}
	return ids, nil
}
