// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// writeMemory changes a process's memory, by what is there already.
func writeMemory(t *testing.T, pid string) {
	t.Helper()
	maps, err := os.ReadFile("/proc/" + pid + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	var from int64
	if _, err := fmt.Sscanf(string(maps), "%x-", &from); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile("/proc/"+pid+"/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, from); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, from); err != nil {
		t.Fatal(err)
	}
}

// When another process got at one that has an SVID of its own, that SVID is revoked; those of others stay.
func TestTamperedWith(t *testing.T) {
	shared.create(t, "/tampered", "--selector", me(t), "--per-process")
	victim, other := shared.startWorkload(t, self), shared.startWorkload(t, self)
	held, others := victim.next(t, shared), other.next(t, shared)
	if len(held.Serials) != 1 || len(others.Serials) != 1 {
		t.Fatalf("got %+v and %+v", held, others)
	}
	writeMemory(t, victim.pid())
	if e := victim.next(t, shared); e.Code != "PermissionDenied" {
		t.Errorf("the stream of a process that was tampered with: %+v", e)
	}
	eventually(t, "its SVID to be revoked", func() bool {
		return strings.Contains(shared.must(t, nil, "svid", "revoked"), held.Serials[0])
	})
	if strings.Contains(shared.must(t, nil, "svid", "revoked"), others.Serials[0]) {
		t.Error("the SVID of another process was revoked, too")
	}
}
