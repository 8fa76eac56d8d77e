// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"slices"

	"github.com/cilium/ebpf/btf"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/selectors"
)

// Programs in the order in which they are attached; names are those in the C code.
var (
	lineagePrograms = []string{"on_fork", "on_exec"}
	// Either serves, and without both an execve from a thread loses its lineage, visibly.
	threadExecSets = [][]string{{"on_prepare_exec"}, {"on_creds_for_exec"}}
)

const (
	seedProgram = "seed"
	lookProgram = "look"
	// Both together answer who holds a socket.
	holdersProgram = "find_holders"
	ringsProgram   = "find_rings"
)

// walkers answer questions later; the agent that asks may not be allowed to load them.
var walkers = []string{lookProgram, holdersProgram, ringsProgram}

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

// lsmRuns reports whether LSM programs were seen to run.
func (s *Sensor) lsmRuns() bool { return s.kernel.On(doors[0].programs[0]) }

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
	if slices.ContainsFunc(f.sets, s.attachSet) {
		return
	}
	why := cmp.Or(s.kernel.Refusal(slices.Concat(f.sets...)...), "BPF LSM programs do not run on this kernel")
	s.log.Warn("a kernel hook is unavailable: "+f.loss+" will go unseen", "because", why)
}

func (s *Sensor) attachSet(set []string) bool {
	if s.kernel.IsLSM(set[0]) && !s.lsmRuns() {
		return false
	}
	if set[0] == memoryProgram {
		if err := checkMemoryTracepoint(); err != nil {
			s.kernel.Note(hooks.Unavailable, err.Error(), memoryProgram)
			return false
		}
	}
	return s.kernel.Attach(set...) == nil
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

// noteTheRest completes the notes with the hooks that are not attached.
func (s *Sensor) noteTheRest(why string) {
	var sets [][]string
	for _, d := range doors {
		sets = append(sets, d.programs)
	}
	s.kernel.NoteAlternatives(sets, why)
	s.kernel.NoteAlternatives(threadExecSets, why)
	for _, f := range features {
		if s.wants(f) {
			s.kernel.NoteAlternatives(f.sets, why)
			continue
		}
		off := "not needed at tier " + s.tier.String()
		if f.optIn != nil {
			off = unwanted
		}
		s.kernel.NoteOthers(hooks.Off, off, slices.Concat(f.sets...)...)
	}
}

// unwanted is why an optional hook is off.
const unwanted = "not wanted by the configuration"
