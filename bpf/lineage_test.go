// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"strings"
	"testing"

	"github.com/assay-id/assay/bpf/record"
)

// testLongLineage: ancestors that do not fit into the task's own record go where that goes: over
// an execve, also by a thread; to a child; and into the record of a connection.
func testLongLineage(t *testing.T, s *Sensor) {
	const depth = 7
	l, path := listen(t, s, 8)
	deep := func(then string) *program {
		return start(t, "deep", "ASSAY_DEPTH="+strings.Repeat("x", depth), "ASSAY_THEN="+then, "ASSAY_SOCKET="+path)
	}
	expect := func(name string, task record.Task, execs int) {
		t.Helper()
		want := min(len(me(t, s).Ancestors)+1+execs, record.MaxAncestors)
		if len(task.Ancestors) != want {
			t.Errorf("%s: %d ancestors, want %d", name, len(task.Ancestors), want)
		}
		for i, a := range task.Ancestors[:min(execs, want)] {
			if a.Process.TGID != task.Process.TGID || !a.Flags.Has(record.Observed|record.ReplacedInPlace) || a.Inode != task.Executable.Inode {
				t.Errorf("%s: ancestor %d is %+v, want an earlier image of the process", name, i, a)
			}
		}
		if i := execs; i < want && task.Ancestors[i].Process != me(t, s).Process {
			t.Errorf("%s: ancestor %d is %+v, want this test", name, i, task.Ancestors[i])
		}
	}

	p := deep("connect")
	p.word(t)
	b, err := s.Binding(accept(t, l))
	if err != nil {
		t.Fatal(err)
	}
	expect("at rest", mustTask(t, s, p.pidfd), depth+1)
	expect("of a connection", b.Task, depth+1)

	p = deep("fork")
	p.word(t)
	child := mustTask(t, s, p.forked(t))
	if parent := mustTask(t, s, p.pidfd); !slices.Equal(child.Ancestors, parent.Ancestors) || child.Process.TGID == parent.Process.TGID {
		t.Errorf("a child has %+v, its parent %+v", child.Ancestors, parent.Ancestors)
	}

	p = deep("thread-exec")
	p.word(t)
	expect("after an execve by a thread", mustTask(t, s, p.pidfd), depth+2)
}
