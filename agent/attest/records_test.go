// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"testing"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// What T1 sees is the grant of an access, not its use; T2 sees the use of memory alone.
func TestIntegrityClaimsOnlyWhatIsSure(t *testing.T) {
	const all = record.PtraceAttached | record.MemoryWritten | record.MemoryRead | record.MemoryOpened | record.DescriptorTaken | record.Accessed
	t1 := func(seen record.Tampering) record.Integrity {
		return record.Integrity{Sees: all, Known: true, Seen: seen}
	}
	t2 := func(seen record.Tampering) record.Integrity {
		return record.Integrity{Sees: record.MemoryWritten, Seen: seen}
	}
	for _, c := range []struct {
		name                         string
		in                           record.Integrity
		clean, unmodified, unwritten bool
	}{
		{"T1, nothing", t1(0), true, true, true},
		{"T1, read", t1(record.MemoryRead), false, true, true},
		{"T1, descriptor taken", t1(record.DescriptorTaken), false, true, true},
		{"T1, memory opened", t1(record.MemoryOpened), false, false, false},
		{"T1, attached", t1(record.PtraceAttached), false, false, false},
		{"T1, something else", t1(record.Accessed), false, false, false},
		{"T1, written", t1(record.MemoryWritten), false, false, false},
		{"T2, nothing", t2(0), false, false, true},
		{"T2, attached", t2(record.PtraceAttached), false, false, false},
		{"T2, written", t2(record.MemoryWritten), false, false, false},
		{"seeded", record.Integrity{}, false, false, false},
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
