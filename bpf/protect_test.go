// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProtect: another process of root can neither touch the agent nor its pins, until the
// agent is told to end.
func TestProtect(t *testing.T) {
	mount := bpffs(t)
	pins := filepath.Join(mount, "assay")
	if !lsmWorks(t, pins) {
		_, err := Load(Config{PinDir: pins, Protect: true, Logger: testLogger(t)})
		if !errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), "lsm=") {
			t.Errorf("protection where the kernel has none: %v", err)
		}
		return
	}
	p := start(t, "protected", "ASSAY_PINS="+pins)
	p.word(t)
	pid := p.Process.Pid
	mem := func() error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		f.Close()
		return err
	}
	attach := func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return unix.PtraceSeize(pid)
	}
	buf := make([]byte, 8)
	pin := linkPin(pins, "on_exec")
	for name, attack := range map[string]func() error{
		"ptrace": attach,
		"mem":    mem,
		"process_vm_readv": func() error {
			_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: 8}}, []unix.RemoteIovec{{Base: targetAddress(), Len: 8}}, 0)
			return err
		},
		"pidfd_getfd": func() error { _, err := unix.PidfdGetfd(p.pidfd, 1, 0); return err },
		"SIGKILL":     func() error { return unix.Kill(pid, unix.SIGKILL) },
		"SIGSTOP":     func() error { return unix.Kill(pid, unix.SIGSTOP) },
		"SIGQUIT":     func() error { return unix.PidfdSendSignal(p.pidfd, unix.SIGQUIT, nil, 0) },
		"unlink":      func() error { return unix.Unlink(pin) },
		"rename":      func() error { return unix.Rename(pin, filepath.Join(mount, "elsewhere")) },
		"rename over": func() error { return unix.Rename(linkPin(pins, "on_fork"), pin) },
		"umount":      func() error { return unix.Unmount(mount, unix.MNT_DETACH) },
	} {
		if err := attack(); !errors.Is(err, os.ErrPermission) { // EPERM, or EACCES of opening mem
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Error(err)
	}
	other := start(t, "wait") // others are as they were
	other.word(t)
	if err := unix.Kill(other.Process.Pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	check(unix.Kill(pid, unix.SIGTERM)) // the way out
	if _, err := p.Process.Wait(); err != nil {
		t.Error(err)
	}
	if err := Unpin(pins); err != nil {
		t.Error(err)
	}
}

// lsmWorks reports whether BPF LSM programs run here.
func lsmWorks(t *testing.T, pins string) bool {
	s, err := Load(Config{PinDir: pins, Logger: testLogger(t)})
	needKernel(t, err)
	defer func() { check(errors.Join(s.Close(), Unpin(pins))) }()
	return s.lsmRuns()
}
