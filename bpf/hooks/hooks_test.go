// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// object has three programs on one tracepoint, of which the verifier refuses "bad".
func object(dir string) *Object {
	program := func(instructions ...asm.Instruction) *ebpf.ProgramSpec {
		return &ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sched_process_exec",
			SectionName: "tp_btf/sched_process_exec", License: "GPL", Instructions: append(instructions, asm.Return())}
	}
	zero := asm.Mov.Imm(asm.R0, 0)
	return New(&ebpf.CollectionSpec{
		Maps:     map[string]*ebpf.MapSpec{"cell": {Name: "cell", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}},
		Programs: map[string]*ebpf.ProgramSpec{"one": program(zero), "two": program(zero), "bad": program()},
	}, dir, "")
}

func bpffs(t *testing.T) string {
	t.Helper()
	mount := t.TempDir()
	must(t, unix.Mount("bpf", mount, "bpf", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(mount, 0)) })
	dir := filepath.Join(mount, "pins")
	must(t, os.Mkdir(dir, 0o700))
	return dir
}

// must skips where the privilege is missing, unless that is forbidden.
func must(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, os.ErrPermission) && os.Getenv("ASSAY_NO_SKIP") != "1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// states are what is noted, as "program state".
func states(o *Object) string {
	var out []string
	for _, h := range o.Hooks() {
		out = append(out, h.Program+" "+string(h.State))
	}
	return strings.Join(out, ", ")
}

func TestObjectOutlivesItsProcess(t *testing.T) {
	dir := bpffs(t)
	if pinned, err := Pinned(dir); err != nil || pinned {
		t.Fatalf("an empty folder: pinned %v, %v", pinned, err)
	}
	first := object(dir)
	must(t, errors.Join(first.MakeMaps(), first.PinMaps(), first.Attach("one", "two")))
	must(t, first.Maps["cell"].Put(uint32(0), uint32(7)))
	info, err := first.Links["two"].Info()
	must(t, err)
	must(t, first.Close())
	if first.On("one") || len(first.Maps) > 0 {
		t.Error("something is open after Close")
	}

	next := object(dir)
	must(t, errors.Join(next.OpenMaps(), next.Open("one", "two")))
	defer next.Close()
	var seven uint32
	must(t, next.Maps["cell"].Lookup(uint32(0), &seven))
	again, err := next.Links["two"].Info()
	must(t, err)
	if pinned, err := Pinned(dir); !pinned || seven != 7 || again.ID != info.ID || states(next) != "one on, two on" {
		t.Errorf("taken over: pinned %v (%v), cell %d, link %d for %d, notes %q", pinned, err, seven, again.ID, info.ID, states(next))
	}
	if ids, err := next.IDs(); err != nil || len(ids.Maps) != 1 || len(ids.Programs) != 2 || !slices.Contains(ids.Links, uint32(info.ID)) {
		t.Errorf("its parts are %+v, %v", ids, err)
	}
	must(t, Remove(dir))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after Remove there are %v, %v", left, err)
	}
	if err := object(dir).OpenMaps(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("maps of an empty folder: %v", err)
	}
}

func TestSetIsAllOrNothing(t *testing.T) {
	dir := bpffs(t)
	o := object(dir)
	defer o.Close()
	must(t, errors.Join(o.MakeMaps(), o.PinMaps()))
	err := o.Attach("one", "bad")
	if err == nil || !strings.Contains(err.Error(), "attaching tp_btf/sched_process_exec: the verifier says: R0 !read_ok") {
		t.Errorf("a set with a bad program: %v", err)
	}
	if o.On("one") || states(o) != "bad unavailable" || !strings.Contains(o.Refusal("one", "bad"), "R0 !read_ok") {
		t.Errorf("notes after a set was refused: %q, %q", states(o), o.Refusal("one", "bad"))
	}
	must(t, o.Attach("one"))
	if err := o.Open("one", "bad"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening a set that is half there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "link_one")); err != nil || o.On("one") {
		t.Errorf("opening a half set: on %v, pin %v", o.On("one"), err)
	}
}

func TestNoteAlternatives(t *testing.T) {
	dir := bpffs(t)
	o := object(dir)
	defer o.Close()
	must(t, errors.Join(o.MakeMaps(), o.PinMaps(), o.Attach("one")))
	o.NoteAlternatives([][]string{{"bad"}, {"one"}, {"two"}}, "not tried")
	if states(o) != "one on, bad unavailable, two off" || o.Refusal("two", "one", "bad") != "tp_btf/sched_process_exec: not tried" {
		t.Errorf("notes %q, refusal %q", states(o), o.Refusal("two", "one", "bad"))
	}
	must(t, o.Detach("one"))
	if o.On("one") || states(o) != "bad unavailable, two off" {
		t.Errorf("after Detach %q", states(o))
	}
}
