// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

func TestRestart(t *testing.T) {
	pins := filepath.Join(bpffs(t), "assay")
	config := Config{PinDir: pins, Logger: testLogger(t)}
	s, err := Load(config)
	needKernel(t, err)
	check(s.Close())
	p := start(t, "exec") // runs while no agent does
	p.word(t)

	s, err = Load(config)
	if err != nil {
		t.Fatal(err)
	}
	task := mustTask(t, s, p.pidfd)
	if !task.Flags.Has(record.Observed) || len(task.Ancestors) < 2 || !task.Ancestors[0].Flags.Has(record.ReplacedInPlace) {
		t.Errorf("record made while no agent ran: %+v", task)
	}
	// another build's pins are not used
	check(s.kernel.Maps["settings"].Put(uint32(0), record.Settings{Build: 12345, AgentTGID: 1, Tier: uint32(s.tier)}))
	check(s.Close())
	s, err = Load(config)
	if err != nil {
		t.Fatal(err)
	}
	anew := mustTask(t, s, p.pidfd)
	if !anew.Flags.Has(record.Seeded) || anew.Process.ExecID == task.Process.ExecID {
		t.Errorf("record after starting anew: %+v", anew)
	}
	p2 := start(t, "wait")
	p2.word(t)
	if next := mustTask(t, s, p2.pidfd); next.Process.ExecID <= task.Process.ExecID {
		t.Errorf("exec id %d was given again, after %d", next.Process.ExecID, task.Process.ExecID)
	}
	check(s.Close())
	check(Unpin(pins))
	if _, err := os.Stat(pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin directory after Unpin: %v", err)
	}
	check(Unpin(pins))
}

func TestLoadSaysWhatToDo(t *testing.T) {
	if missing, err := missingCapabilities(slices.Concat(toLoad, toAnswer)); err != nil || len(missing) > 0 {
		needKernel(t, ErrPrivilege)
	}
	_, err := Load(Config{PinDir: t.TempDir(), Logger: testLogger(t)})
	if !errors.Is(err, ErrNotBPFFS) || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("pins outside of a bpffs: %v", err)
	}
	pins := filepath.Join(bpffs(t), "assay")
	_, err = Load(Config{PinDir: pins, CgroupRoot: "/proc", Logger: testLogger(t)})
	if !errors.Is(err, ErrNoCgroup2) {
		t.Errorf("a cgroup root that is none: %v", err)
	}
	s, err := Load(Config{PinDir: pins, MinimumTier: selectors.TierT1, Logger: testLogger(t)})
	if err == nil {
		check(errors.Join(s.Close(), Unpin(pins)))
		return // this kernel has T1
	}
	if !errors.Is(err, ErrTier) || !strings.Contains(err.Error(), "lsm=") || strings.Contains(err.Error(), "MEMLOCK") {
		t.Errorf("demanding T1: %v", err)
	}
	t.Log(err)
	if _, err := os.Stat(pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a Load that failed left pins: %v", err)
	}
}
