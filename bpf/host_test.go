// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

func TestSizesAreThoseOfTheMaps(t *testing.T) {
	spec, err := loadSensor()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"tasks": record.TaskSize, "far": record.FarSize, "answer": record.AnswerSize, "bindings": record.BindingSize, "state": record.StateSize, "execs": record.ExecSize, "looked": record.LookedSize, "inodes": record.FileStateSize, "code": record.CodeSize, "settings": binary.Size(record.Settings{}), "held": record.HoldersSize} {
		if got := spec.Maps[name].ValueSize; got != uint32(size) {
			t.Errorf("map %s has values of %d bytes, decoded as %d", name, got, size)
		}
	}
}

func TestLacking(t *testing.T) {
	if got := lacking(1<<unix.CAP_SYS_ADMIN, toLoad); len(got) != 0 {
		t.Errorf("CAP_SYS_ADMIN lacks %v", got)
	}
	if got := lacking(1<<unix.CAP_SYS_ADMIN, toAnswer); len(got) != 1 || got[0] != "CAP_DAC_READ_SEARCH" {
		t.Errorf("lacking %v, want CAP_DAC_READ_SEARCH", got)
	}
	if got := lacking(1<<unix.CAP_BPF|1<<unix.CAP_NET_ADMIN, toLoad); len(got) != 1 || got[0] != "CAP_PERFMON" {
		t.Errorf("lacking %v, want CAP_PERFMON", got)
	}
}
