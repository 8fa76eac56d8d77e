// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"testing"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/selectors"
)

// What T1 sees is the grant of an access, not its use; T2 sees the use of memory alone.
func TestIntegrityClaimsOnlyWhatIsSure(t *testing.T) {
	const all = bpf.PtraceAttached | bpf.MemoryWritten | bpf.MemoryRead | bpf.MemoryOpened | bpf.DescriptorTaken | bpf.Accessed
	t1 := func(seen bpf.Tampering) bpf.Integrity { return bpf.Integrity{Sees: all, Known: true, Seen: seen} }
	t2 := func(seen bpf.Tampering) bpf.Integrity { return bpf.Integrity{Sees: bpf.MemoryWritten, Seen: seen} }
	for _, c := range []struct {
		name                         string
		in                           bpf.Integrity
		clean, unmodified, unwritten bool
	}{
		{"T1, nothing", t1(0), true, true, true},
		{"T1, read", t1(bpf.MemoryRead), false, true, true},
		{"T1, descriptor taken", t1(bpf.DescriptorTaken), false, true, true},
		{"T1, memory opened", t1(bpf.MemoryOpened), false, false, false},
		{"T1, attached", t1(bpf.PtraceAttached), false, false, false},
		{"T1, something else", t1(bpf.Accessed), false, false, false},
		{"T1, written", t1(bpf.MemoryWritten), false, false, false},
		{"T2, nothing", t2(0), false, false, true},
		{"T2, attached", t2(bpf.PtraceAttached), false, false, false},
		{"T2, written", t2(bpf.MemoryWritten), false, false, false},
		{"seeded", bpf.Integrity{}, false, false, false},
	} {
		f := &selectors.Facts{Process: selectors.ProcessKey{ExecID: 1}, Tier: selectors.TierT2, Integrity: integrity(c.in)}
		got := selectors.Derive(f)
		for name, want := range map[string]bool{"clean": c.clean, "unmodified": c.unmodified, "memory-unwritten": c.unwritten} {
			if got.Contains(selectors.Selector{Type: "integrity", Value: name}) != want {
				t.Errorf("%s: integrity:%s is %v", c.name, name, !want)
			}
		}
	}
}
