// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/cgroup"
	"github.com/assay-id/assay/bpf/record"
)

// TestProtect: another process of root can touch neither the agent nor its files, pins and BPF
// objects, and each try is reported, until the agent is told to end.
func TestProtect(t *testing.T) {
	mount, data := bpffs(t), t.TempDir()
	pins := filepath.Join(mount, "assay")
	if !lsmWorks(t, pins) {
		_, err := Load(Config{PinDir: pins, Protect: true, Logger: testLogger(t)})
		if !errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), "lsm=") {
			t.Errorf("protection where the kernel has none: %v", err)
		}
		return
	}
	secret, below := filepath.Join(data, "secret"), filepath.Join(data, "below")
	check(errors.Join(os.WriteFile(secret, []byte("x"), 0o600), os.Mkdir(below, 0o700), os.WriteFile(filepath.Join(below, "s"), nil, 0o600)))
	other := start(t, "wait")
	other.word(t)
	p := start(t, "protected", "ASSAY_PINS="+pins, "ASSAY_DATA="+data)
	var mapID ebpf.MapID
	var programID ebpf.ProgramID
	var linkID link.ID
	_, err := fmt.Sscan(p.word(t), &mapID, &programID, &linkID)
	check(err)
	elsewhere := t.TempDir()
	tried := map[record.Refused]int{}
	for name, a := range intrusions(p, mount, pins, data, elsewhere, mapID, programID, linkID) {
		if err := a.try(); !errors.Is(err, os.ErrPermission) { // EPERM, or EACCES of opening mem
			t.Errorf("%s: %v, want it refused", name, err)
		}
		tried[a.as]++
	}
	for range 100 * len(tried) {
		if len(tried) == 0 {
			break
		}
		var by, uid uint32
		var what record.Refused
		var execID, count uint64
		_, err := fmt.Sscan(p.word(t), &by, &uid, &what, &execID, &count)
		check(err)
		if by != uint32(os.Getpid()) || uid != 0 || execID == 0 || count == 0 {
			t.Errorf("%v by process %d of user %d with exec id %d, the %dth", what, by, uid, execID, count)
		}
		if tried[what]--; tried[what] <= 0 {
			delete(tried, what)
		}
	}
	if len(tried) != 0 {
		t.Errorf("not reported: %v", tried)
	}
	untouched(t, p, other)
	if err := Unpin(pins); !errors.Is(err, ErrInUse) {
		t.Errorf("unpinning while the agent lives: %v, want ErrInUse", err)
	}
	end := func() {
		check(unix.Kill(p.Process.Pid, unix.SIGTERM)) // the way out
		if _, err := p.Process.Wait(); err != nil {
			t.Error(err)
		}
	}
	end()
	p = start(t, "protected", "ASSAY_PINS="+pins, "ASSAY_DATA="+data) // takes over
	_, err = fmt.Sscan(p.word(t), &mapID, &programID, &linkID)
	check(err)
	for name, a := range intrusions(p, mount, pins, data, elsewhere, mapID, programID, linkID) {
		if err := a.try(); !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s, after a restart: %v, want it refused", name, err)
		}
	}
	end()
	if _, err := os.ReadFile(secret); err != nil {
		t.Error(err)
	}
	if err := Unpin(pins); err != nil {
		t.Error(err)
	}
}

type intrusion struct {
	as  record.Refused
	try func() error
}

// intrusions are what root tries; see wire.h for the numbers.
func intrusions(p *program, mount, pins, data, elsewhere string, mapID ebpf.MapID, programID ebpf.ProgramID, linkID link.ID) map[string]intrusion {
	const debug, signal, file, umount, aMap, aProgram, aLink = 1, 2, 3, 4, 5, 6, 7
	pid, buf := p.Process.Pid, make([]byte, 8)
	pin, secret := filepath.Join(pins, "link_on_exec"), filepath.Join(data, "secret")
	open := func(path string, flags int) func() error {
		return func() error {
			f, err := os.OpenFile(path, flags, 0o600)
			f.Close()
			return err
		}
	}
	return map[string]intrusion{
		"ptrace seize":  {debug, func() error { return unix.PtraceSeize(pid) }},
		"ptrace attach": {debug, func() error { return unix.PtraceAttach(pid) }},
		"mem":           {debug, open(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDONLY)},
		"process_vm_readv": {debug, func() error {
			_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: 8}}, []unix.RemoteIovec{{Base: targetAddress(), Len: 8}}, 0)
			return err
		}},
		"pidfd_getfd": {debug, func() error { _, err := unix.PidfdGetfd(p.pidfd, 1, 0); return err }},
		"SIGKILL":     {signal, func() error { return unix.Kill(pid, unix.SIGKILL) }},
		"SIGSTOP":     {signal, func() error { return unix.Kill(pid, unix.SIGSTOP) }},
		"SIGQUIT":     {signal, func() error { return unix.PidfdSendSignal(p.pidfd, unix.SIGQUIT, nil, 0) }},

		"unlink a pin":      {file, func() error { return unix.Unlink(pin) }},
		"rename a pin":      {file, func() error { return unix.Rename(pin, filepath.Join(mount, "elsewhere")) }},
		"rename over a pin": {file, func() error { return unix.Rename(filepath.Join(pins, "link_on_fork"), pin) }},
		"rename the pins":   {file, func() error { return unix.Rename(pins, filepath.Join(mount, "elsewhere")) }},
		"umount the pins":   {umount, func() error { return unix.Unmount(mount, unix.MNT_DETACH) }},
		"read a pin":        {file, open(filepath.Join(pins, "map_state"), os.O_RDONLY)},

		"read a file":       {file, open(secret, os.O_RDONLY)},
		"write a file":      {file, open(secret, os.O_WRONLY)},
		"make a file":       {file, open(filepath.Join(data, "new"), os.O_CREATE|os.O_WRONLY)},
		"list":              {file, func() error { _, err := os.ReadDir(data); return err }},
		"read a file below": {file, open(filepath.Join(data, "below", "s"), os.O_RDONLY)},
		"truncate":          {file, func() error { return os.Truncate(secret, 0) }},
		"chmod":             {file, func() error { return os.Chmod(secret, 0o777) }},
		"chmod the folder":  {file, func() error { return os.Chmod(data, 0o777) }},
		"unlink":            {file, func() error { return unix.Unlink(secret) }},
		"rename":            {file, func() error { return unix.Rename(secret, filepath.Join(elsewhere, "s")) }},
		"rename into":       {file, func() error { return unix.Rename(elsewhere, filepath.Join(data, "s")) }},
		"rename the folder": {file, func() error { return unix.Rename(data, filepath.Join(elsewhere, "d")) }},
		"link":              {file, func() error { return unix.Link(secret, filepath.Join(elsewhere, "s")) }},

		"map by id":     {aMap, func() error { m, err := ebpf.NewMapFromID(mapID); return errors.Join(err, m.Close()) }},
		"program by id": {aProgram, func() error { p, err := ebpf.NewProgramFromID(programID); return errors.Join(err, p.Close()) }},
		"link by id":    {aLink, func() error { _, err := link.NewFromID(linkID); return err }},
		"map by pin":    {file, func() error { _, err := ebpf.LoadPinnedMap(filepath.Join(pins, "map_tasks"), nil); return err }},
		"link by pin":   {file, func() error { _, err := link.LoadPinnedLink(pin, nil); return err }},
	}
}

// untouched: what is not the agent's is as it was.
func untouched(t *testing.T, p, other *program) {
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid)); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(p.Process.Pid, 0); err != nil {
		t.Error(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	info, err := m.Info()
	check(err)
	id, _ := info.ID()
	again, err := ebpf.NewMapFromID(id)
	if err != nil {
		t.Error(err)
	}
	again.Close()
	if err := unix.Kill(other.Process.Pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestGate: only the cgroups on the list connect, whenever they are made.
func TestGate(t *testing.T) {
	pins := filepath.Join(bpffs(t), "assay")
	top := fmt.Sprintf("/assay-gate-%d", os.Getpid())
	config := Config{PinDir: pins, ConnectFrom: []string{top, top + "-b/inner"}, Logger: testLogger(t)}
	if !lsmWorks(t, pins) {
		if _, err := Load(config); !errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), "connect_from") {
			t.Errorf("a gate where the kernel has none: %v", err)
		}
		return
	}
	tree, err := cgroup.Open("")
	check(err)
	defer tree.Close()
	cgroup := func(path string) *os.File {
		dir := filepath.Join(tree.Mount, path)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		f, err := os.Open(dir)
		check(err)
		return f
	}
	cgroup(top).Close()
	s, err := Load(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(errors.Join(s.Close(), Unpin(pins))) }()
	_, socket := listen(t, s, 64)
	connect := func(path string) string {
		dir := cgroup(path)
		defer dir.Close()
		p := startAs(t, "try", nil, syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}, "ASSAY_SOCKET="+socket)
		defer p.stop()
		return p.word(t)
	}
	check(unix.Connect(clientSocket(), &unix.SockaddrUnix{Name: socket})) // the agent itself
	refused := s.Refused()
	for round := range 2 {
		for _, path := range []string{"/", top + "-b", top + "-b/other", top + "-x", top + "-b/inner2"} {
			if word := connect(path); word != unix.EPERM.Error() {
				t.Errorf("round %d, from %s: %s, want it refused", round, path, word)
			}
			refused++
		}
		for _, path := range []string{top, top + "/below", top + "/below/deep", top + "-b/inner", top + "-b/inner/below"} {
			if word := connect(path); word != "connected" {
				t.Errorf("round %d, from %s: %s", round, path, word)
			}
		}
		for _, path := range []string{"-b/inner/below", "-b/inner", "/below/deep", "/below", ""} { // made anew by the next round
			check(os.Remove(filepath.Join(tree.Mount, top+path)))
		}
	}
	if n := s.Refused(); n != refused {
		t.Errorf("%d refusals are counted, want %d", n, refused)
	}
	if got, err := s.kernel.Maps["admitted"].LookupBytes(uint64(0)); err != nil || got != nil {
		t.Error(got, err)
	}
	var key uint64
	if err := s.kernel.Maps["admitted"].NextKey(nil, &key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("a removed cgroup is still admitted: %d, %v", key, err)
	}
}

func TestCgroupPathsAreChecked(t *testing.T) {
	for _, p := range []string{"", "system.slice", "/a/", "/a//b", "/a/../b", "/" + strings.Repeat("x", 254)} {
		if checkCgroupPaths([]string{p}) == nil {
			t.Errorf("%q is accepted", p)
		}
	}
	if err := checkCgroupPaths([]string{"/", "/system.slice", "/" + strings.Repeat("x", 253)}); err != nil {
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
