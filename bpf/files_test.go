// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// ownCopy copies this binary to a file of its own.
func ownCopy(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/exe")
	check(err)
	path := filepath.Join(t.TempDir(), "program")
	check(os.WriteFile(path, raw, 0o755))
	return path
}

// testFileState: what is executed is the same as long as token and wgen are.
func testFileState(t *testing.T, s *Sensor) {
	path := ownCopy(t)
	run := func() (program record.MappedFile) {
		t.Helper()
		p := startFile(t, path, "wait")
		p.word(t)
		defer p.stop()
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("opening a running program for writing: %v, %v", f, err)
		}
		c, err := s.Code(p.pidfd)
		check(err)
		for _, m := range c.Files {
			if m.Inode == mustTask(t, s, p.pidfd).Executable.Inode {
				program = m
			}
		}
		return program
	}
	state := func() (token, wgen uint64, err error) {
		f, err := os.Open(path)
		check(err)
		defer f.Close()
		return s.FileState(int(f.Fd()))
	}
	first := run()
	if s.Tier() == selectors.TierT2 {
		if _, _, err := state(); !errors.Is(err, record.ErrNoRecord) || first.Token != 0 {
			t.Errorf("token %d without hooks, %v", first.Token, err)
		}
		return
	}
	if token, wgen, err := state(); err != nil || token == 0 || token != first.Token || wgen != first.WGen {
		t.Errorf("state %d/%d, %v; at the execve %d/%d", token, wgen, err, first.Token, first.WGen)
	}
	if second := run(); second != first {
		t.Errorf("another process of an unchanged file: %+v, was %+v", second, first)
	}
	last := first
	for name, change := range map[string]func(){
		"write": func() {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			check(err)
			defer f.Close()
			_, err = f.WriteAt([]byte{0}, 1<<20)
			check(err)
		},
		"truncate": func() { // to more than it has
			st, err := os.Stat(path)
			check(err)
			check(os.Truncate(path, st.Size()+1))
		},
	} {
		change()
		now := run()
		if now.Token != first.Token || now.WGen <= last.WGen {
			t.Errorf("%s: %d/%d, was %d/%d", name, now.Token, now.WGen, last.Token, last.WGen)
		}
		last = now
	}
}

func testCode(t *testing.T, s *Sensor) {
	library := filepath.Join(t.TempDir(), "library")
	f, err := os.Create(library) // stays open for writing
	check(err)
	defer f.Close()
	check(f.Truncate(4096))
	var st unix.Stat_t
	check(unix.Stat(library, &st))
	p := start(t, "code", "ASSAY_FILE="+library)
	p.word(t)
	code := func(pidfd int) record.Code {
		t.Helper()
		c, err := s.Code(pidfd)
		check(err)
		return c
	}
	say := func() string {
		fmt.Fprintln(p.in)
		return p.word(t)
	}
	begin := code(p.pidfd)
	if s.Tier() == selectors.TierT2 {
		if begin.Known || begin.Files != nil {
			t.Errorf("code %+v without hooks", begin)
		}
		return
	}
	task := mustTask(t, s, p.pidfd)
	isProgram := func(m record.MappedFile) bool {
		return m.Inode == task.Executable.Inode && m.Device == task.Executable.Device && m.Token != 0 && !m.Writers
	}
	if !begin.Known || begin.AnonymousExec || begin.Overflow || !slices.ContainsFunc(begin.Files, isProgram) {
		t.Errorf("code %+v of %+v", begin, task.Executable)
	}
	say()
	mapped := code(p.pidfd)
	if n := len(mapped.Files); n != len(begin.Files)+1 || mapped.Files[n-1].Inode != st.Ino || !mapped.Files[n-1].Writers || mapped.AnonymousExec {
		t.Errorf("code %+v after mapping inode %d, was %+v", mapped, st.Ino, begin)
	}
	child := p.forked(t)
	if c := code(child); !c.Known || !slices.Equal(c.Files, mapped.Files) {
		t.Errorf("code %+v of a child, want %+v", c, mapped)
	}
	say()
	if c := code(p.pidfd); !c.AnonymousExec {
		t.Errorf("code %+v with anonymous executable memory", c)
	}
	if c := code(child); c.AnonymousExec {
		t.Errorf("code %+v of a child whose parent did that", c)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	check(err)
	defer unix.Close(fd)
	if c := code(fd); c.Known {
		t.Errorf("code %+v of a process that ran before the sensor", c)
	}
}

// TestKernelDigests: the kernel's own digests, where it has IMA and we have the hook.
func TestKernelDigests(t *testing.T) {
	pins := filepath.Join(bpffs(t), "assay")
	config := Config{PinDir: pins, KernelDigests: true, Logger: testLogger(t)}
	s, err := Load(config)
	needKernel(t, err)
	defer func() { check(errors.Join(s.Close(), Unpin(pins))) }()
	path := ownCopy(t)
	digest := func() *selectors.Digest {
		p := startFile(t, path, "wait")
		p.word(t)
		defer p.stop()
		info := mustExec(t, s, p.pidfd)
		if info.Verity != nil {
			t.Errorf("fs-verity digest %v of a plain file", info.Verity)
		}
		return info.IMA
	}
	isOn := func() bool {
		return slices.ContainsFunc(s.Hooks(), func(h hooks.Hook) bool { return h.Program == "on_ima" && h.State == hooks.On })
	}
	on := isOn()
	must := on && os.Getenv("ASSAY_GUEST") == "1" // Debian's kernels have IMA
	for range 2 {
		raw, err := os.ReadFile(path)
		check(err)
		got := digest()
		if want := selectors.Digest(sha256.Sum256(raw)); !on && got != nil || must && got == nil || got != nil && *got != want {
			t.Errorf("IMA digest %v, want %v (hook on: %v)", got, want, on)
		}
		check(os.WriteFile(path, append(raw, 0), 0o755))
	}
	t.Logf("tier %s, IMA hook on: %v", s.Tier(), on)
	if image := os.Getenv("ASSAY_VERITY"); image != "" {
		testVerity(t, s, image)
	}
	check(s.Close())
	config.KernelDigests = false
	s, err = Load(config)
	check(err)
	if got := digest(); got != nil || isOn() {
		t.Errorf("IMA digest %v though it was switched off", got)
	}
}
