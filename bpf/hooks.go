// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/assay-id/assay/selectors"
)

// HookState is whether a hook works.
type HookState string

// The states of a hook.
const (
	HookOn          HookState = "on"
	HookOff         HookState = "off" // not needed, because a stronger one is on
	HookUnavailable HookState = "unavailable"
)

// Hook is one place in the kernel where the sensor wants to run.
type Hook struct {
	// Name is the program's section, for example "tp_btf/sched_process_exec".
	Name  string
	State HookState
	// Detail says why a hook is not on.
	Detail string
}

// Programs in the order in which they are attached; names are those in the C code.
var (
	lineagePrograms = []string{"on_fork", "on_exec"}
	// Either serves, and without both an execve from a thread loses its lineage, visibly.
	threadExecPrograms = []string{"on_prepare_exec", "on_creds_for_exec"}
)

const (
	seedProgram   = "seed"
	spliceProgram = "on_splice" // T1, and not vital: it is not a documented kernel function
)

// door is a set of programs that together tell who connects, and hold a tier.
type door struct {
	tier     selectors.Tier
	programs []string
}

// doors, strongest first.
var doors = []door{
	{selectors.TierT1, []string{"on_unix_connect", "on_sendmsg", "on_recvmsg", "on_file_receive"}},
	{selectors.TierT1, []string{"see_unix_connect", "see_sendmsg", "see_recvmsg", "see_file_receive"}},
	{selectors.TierT2, []string{"on_connect", "on_getsockname"}},
}

func mapPin(dir, name string) string  { return filepath.Join(dir, "map_"+name) }
func linkPin(dir, name string) string { return filepath.Join(dir, "link_"+name) }

// loadProgram loads one program over the shared maps: a hook that this kernel lacks costs
// that hook only.
func (s *Sensor) loadProgram(name string) (*ebpf.Program, error) {
	one := s.spec.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: s.maps})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.DetachProgram(name), nil
}

// attach loads, attaches and pins a program and notes the outcome.
func (s *Sensor) attach(name string) error {
	err := s.tryAttach(name)
	if err != nil {
		s.note(name, HookUnavailable, reason(err))
		return fmt.Errorf("attaching %s: %w", s.section(name), err)
	}
	s.note(name, HookOn, "")
	return nil
}

func (s *Sensor) tryAttach(name string) error {
	p, err := s.loadProgram(name)
	if err != nil {
		return err
	}
	defer p.Close()
	var l link.Link
	switch spec := s.spec.Programs[name]; spec.Type {
	case ebpf.Tracing:
		l, err = link.AttachTracing(link.TracingOptions{Program: p})
	case ebpf.LSM:
		l, err = link.AttachLSM(link.LSMOptions{Program: p})
	case ebpf.CGroupSockAddr:
		l, err = link.AttachCgroup(link.CgroupOptions{Path: s.cgroup.mount, Attach: spec.AttachType, Program: p})
	default:
		err = fmt.Errorf("program type %v", spec.Type)
	}
	if err != nil {
		return err
	}
	if err := l.Pin(linkPin(s.dir, name)); err != nil {
		return errors.Join(err, l.Close())
	}
	s.links[name] = l
	return nil
}

func (s *Sensor) detach(names []string) error {
	var errs []error
	for _, name := range names {
		if l := s.links[name]; l != nil {
			errs = append(errs, l.Unpin(), l.Close())
			delete(s.links, name)
		}
	}
	return errors.Join(errs...)
}

func (s *Sensor) attachAll(names []string) error {
	for i, name := range names {
		if err := s.attach(name); err != nil {
			return errors.Join(err, s.detach(names[:i]))
		}
	}
	return nil
}

// seed gives every running process a record. A process can be born behind the iterator's
// back of a parent that had no record yet, so it runs until it finds nobody new.
func (s *Sensor) seed() error {
	p, err := s.loadProgram(seedProgram)
	if err != nil {
		return err
	}
	defer p.Close()
	var before uint64
	for range 8 {
		if err := runIterator(p); err != nil {
			return err
		}
		c, err := s.counters()
		if err != nil {
			return err
		}
		if c.seeded == before {
			return nil
		}
		before = c.seeded
	}
	return nil
}

func runIterator(p *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

func (s *Sensor) section(name string) string { return s.spec.Programs[name].SectionName }

func (s *Sensor) note(name string, state HookState, detail string) {
	section := s.section(name)
	for i := range s.hooks {
		if s.hooks[i].Name == section {
			s.hooks[i].State, s.hooks[i].Detail = state, detail
			return
		}
	}
	s.hooks = append(s.hooks, Hook{section, state, detail})
}

// firstRefusal says which of some programs' hooks is unavailable, and why.
func (s *Sensor) firstRefusal(names []string) string {
	for _, name := range names {
		for _, h := range s.hooks {
			if h.Name == s.section(name) && h.State == HookUnavailable {
				return h.Name + ": " + h.Detail
			}
		}
	}
	return ""
}
