// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
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
	// Name is the program's section, for example "tp_btf/sched_process_exec". Two programs may
	// sit on one hook; Program tells them apart.
	Name    string
	Program string
	State   HookState
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
	seedProgram = "seed"
	lookProgram = "look"
	// Both together answer who holds a socket.
	holdersProgram = "find_holders"
	ringsProgram   = "find_rings"
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

// feature is a fact beside lineage and binding. Without its hooks the fact is unknown.
type feature struct {
	// tier is the only one that needs it; none is every tier.
	tier selectors.Tier
	// sets, strongest first; one is enough.
	sets [][]string
	// loss is what goes unseen without it.
	loss string
	// optIn says whether the configuration wants it; nil is always.
	optIn func(*Config) bool
}

var features = []feature{
	{sets: [][]string{{"on_ptrace_access", "on_traceme"}, {"see_ptrace_access", "see_traceme"}, {memoryProgram}}, loss: "tampering with processes"},
	{tier: selectors.TierT2, sets: [][]string{{"on_signal"}}, loss: "debuggers between two requests of a caller"},
	{sets: [][]string{{"on_cgroup_attach"}}, loss: "moves to another cgroup until the next request or push"},
	{tier: selectors.TierT1, sets: [][]string{{"on_ask"}, {"see_ask"}}, loss: "changes of a caller's credentials and cgroup"},
	{tier: selectors.TierT1, sets: [][]string{{"on_splice"}}, loss: "splice(2) from a passed socket"},
	// Before those that note a file's generation: who opens it later must have been seen.
	{sets: [][]string{{"on_file_open", "on_setattr"}, {"on_file_open", "on_setattr_6_1"}}, loss: "writes to scripts and libraries"},
	{sets: [][]string{{"on_begin_exec"}, {"see_begin_exec"}}, loss: "which file a script is"},
	{sets: [][]string{codePrograms}, loss: "code that is mapped after the execve"},
	{sets: [][]string{gatePrograms}, optIn: wantGate, loss: "connects from other cgroups"},
	{sets: protectSets, optIn: wantProtection, loss: "attacks on the agent"},
	{sets: [][]string{{"on_ima"}}, optIn: wantDigests, loss: "IMA's digests"},
	{sets: [][]string{{"on_verity"}}, optIn: wantDigests, loss: "fs-verity's digests"},
}

var gatePrograms = []string{"on_gate_mkdir", "on_gate_rmdir", "on_gate"}

// protectSets differ by the arguments of inode_setattr.
var protectSets = [][]string{protectPrograms("on_protect_setattr"), protectPrograms("on_protect_setattr_6_1")}

func protectPrograms(setattr string) []string {
	return []string{"on_protect_exit", "on_protect_ptrace", "on_protect_kill", "on_protect_permission", "on_protect_rename", setattr,
		"on_protect_umount", "on_protect_map", "on_protect_program", "on_protect_link"}
}

func wantProtection(c *Config) bool { return c.Protect }

func wantGate(c *Config) bool { return len(c.ConnectFrom) > 0 }

func wantDigests(c *Config) bool { return c.KernelDigests }

var codePrograms = []string{"on_new_code", "on_mmap", "on_mprotect", "on_fork_code"}

// memoryProgram sees memory that is written by another process, and nothing else.
const memoryProgram = "on_mmap_lock"

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
	if name == memoryProgram {
		if err := checkMemoryTracepoint(); err != nil {
			return err
		}
	}
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

// isLSM reports whether a program is of the kind that attaches but never runs where "bpf" is
// not in the kernel's list of running LSMs.
func (s *Sensor) isLSM(name string) bool { return s.spec.Programs[name].Type == ebpf.LSM }

// lsmRuns reports whether LSM programs were seen to run.
func (s *Sensor) lsmRuns() bool { return s.links[doors[0].programs[0]] != nil }

// attachFeatures attaches what the kernel allows of the features, after the door is proven.
func (s *Sensor) attachFeatures() {
	for _, f := range features {
		if s.wants(f) {
			s.attachFeature(f)
		}
	}
}

// wants reports whether a feature has a place at this tier and in this configuration.
func (s *Sensor) wants(f feature) bool {
	return (f.tier == selectors.TierNone || f.tier == s.tier) && (f.optIn == nil || f.optIn(&s.config))
}

func (s *Sensor) attachFeature(f feature) {
	var tried []string
	for _, set := range f.sets {
		if (!s.isLSM(set[0]) || s.lsmRuns()) && s.attachAll(set) == nil {
			return
		}
		tried = append(tried, set...)
	}
	why := s.firstRefusal(tried)
	if why == "" {
		why = "BPF LSM programs do not run on this kernel"
	}
	s.log.Warn("a kernel hook is unavailable: "+f.loss+" will go unseen", "because", why)
}

// checkMemoryTracepoint: older kernels pass other arguments.
func checkMemoryTracepoint() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var t *btf.Typedef
	if err := kernel.TypeByName("btf_trace_mmap_lock_start_locking", &t); err != nil {
		return errors.New("this kernel has no such tracepoint")
	}
	p, _ := t.Type.(*btf.Pointer)
	if p == nil {
		return errors.New("this kernel's tracepoint is of another kind")
	}
	if f, ok := p.Target.(*btf.FuncProto); !ok || len(f.Params) != 3 { // context, mm, write
		return errors.New("this kernel's tracepoint has other arguments")
	}
	return nil
}

func (s *Sensor) section(name string) string { return s.spec.Programs[name].SectionName }

func (s *Sensor) note(name string, state HookState, detail string) {
	for i := range s.hooks {
		if s.hooks[i].Program == name {
			s.hooks[i].State, s.hooks[i].Detail = state, detail
			return
		}
	}
	s.hooks = append(s.hooks, Hook{s.section(name), name, state, detail})
}

// firstRefusal says which of some programs' hooks is unavailable, and why.
func (s *Sensor) firstRefusal(names []string) string {
	for _, name := range names {
		for _, h := range s.hooks {
			if h.Program == name && h.State == HookUnavailable {
				return h.Name + ": " + h.Detail
			}
		}
	}
	return ""
}
