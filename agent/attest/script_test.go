// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/selectors"
)

// As an interpreter this binary waits for the end of its input, or executes itself first.
func TestMain(m *testing.M) {
	switch os.Getenv("ASSAY_ROLE") {
	case "again":
		os.Setenv("ASSAY_ROLE", "wait")
		panic(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "wait":
		fmt.Println("ready")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		return
	}
	os.Exit(m.Run())
}

// needKernel skips where the kernel or the privilege is missing, unless that is forbidden.
func needKernel(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if (errors.Is(err, bpf.ErrPrivilege) || errors.Is(err, bpf.ErrKernel) || errors.Is(err, bpf.ErrNoBTF) || errors.Is(err, os.ErrPermission)) && os.Getenv("ASSAY_NO_SKIP") != "1" {
		t.Skip(err)
	}
	t.Fatal(err)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func attestor(t *testing.T) (*Attestor, *bpf.Sensor) {
	t.Helper()
	mount := filepath.Join(t.TempDir(), "bpffs")
	check(t, os.Mkdir(mount, 0o700))
	needKernel(t, unix.Mount("bpf", mount, "bpf", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(mount, 0)) })
	pins := filepath.Join(mount, "assay")
	s, err := bpf.Load(bpf.Config{PinDir: pins, Logger: slog.New(slog.DiscardHandler)})
	needKernel(t, err)
	t.Cleanup(func() { check(t, errors.Join(s.Close(), bpf.Unpin(pins))) })
	a := New(s, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { check(t, a.Close()) })
	return a, s
}

// place is a folder that only root can change, on the way to it, too.
func place(t *testing.T) string {
	t.Helper()
	check(t, os.MkdirAll("/var/lib", 0o755))
	dir, err := os.MkdirTemp("/var/lib", "assay-script-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	return dir
}

// run executes a script and returns its facts after meddle has run.
func (s scriptCase) run(t *testing.T, a *Attestor, dir, path string) *selectors.Facts {
	t.Helper()
	if s.path != nil {
		path = s.path(t, dir, path)
	}
	c := exec.Command(path)
	c.Dir = dir
	role := "wait"
	if s.again {
		role = "again"
	}
	c.Env = append(os.Environ(), "ASSAY_ROLE="+role)
	in, err := c.StdinPipe()
	check(t, err)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	defer func() {
		in.Close()
		_ = c.Wait()
	}()
	_, err = bufio.NewReader(out).ReadString('\n')
	check(t, err)
	if s.meddle != nil {
		s.meddle(t, filepath.Join(dir, "script"))
	}
	f, err := a.PID(t.Context(), c.Process.Pid)
	check(t, err)
	return f
}

type scriptCase struct {
	path   func(t *testing.T, dir, path string) string // another way to it
	meddle func(t *testing.T, path string)             // while it runs
	again  bool                                        // the interpreter executes another one, like env
	sound  bool
}

// beside makes a folder that others can write, and returns a name in it.
func beside(t *testing.T, dir string) string {
	check(t, os.Mkdir(filepath.Join(dir, "open"), 0o755))
	check(t, os.Chmod(filepath.Join(dir, "open"), 0o777))
	return filepath.Join(dir, "open/script")
}

func mapShared(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

var scriptCases = map[string]scriptCase{
	"plain": {sound: true},
	"link of root's": {sound: true, path: func(t *testing.T, dir, path string) string {
		check(t, os.Symlink("script", filepath.Join(dir, "link")))
		return filepath.Join(dir, "link")
	}},
	"read by others": {sound: true, meddle: func(t *testing.T, path string) {
		_, err := os.ReadFile(path)
		check(t, err)
	}},
	"edited in place": {meddle: func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		check(t, err)
		_, err = f.WriteString("# more\n")
		check(t, errors.Join(err, f.Close()))
	}},
	"opened for writing, and the times set back": {meddle: func(t *testing.T, path string) {
		st, err := os.Stat(path)
		check(t, err)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		check(t, err)
		check(t, errors.Join(f.Close(), os.Chtimes(path, st.ModTime(), st.ModTime())))
	}},
	"written through a mapping": {meddle: func(t *testing.T, path string) {
		m := mapShared(t, path)
		m[0] = m[0] + 0 // read first: on tmpfs ctime stays
		m[0] = '#'
	}},
	"truncated": {meddle: func(t *testing.T, path string) { check(t, os.Truncate(path, 2)) }},
	"replaced by rename": {meddle: func(t *testing.T, path string) {
		raw, err := os.ReadFile(path)
		check(t, errors.Join(err, os.WriteFile(path+".new", raw, 0o755), os.Rename(path+".new", path)))
	}},
	"moved away": {meddle: func(t *testing.T, path string) { check(t, os.Rename(path, path+".old")) }},
	"link in a folder that others can write": {path: func(t *testing.T, dir, path string) string {
		at := beside(t, dir)
		check(t, os.Symlink(path, at))
		return at
	}},
	"hard link in a folder that others can write": {path: func(t *testing.T, dir, path string) string {
		at := beside(t, dir)
		check(t, os.Link(path, at))
		return at
	}},
	"by a relative path": {path: func(*testing.T, string, string) string { return "./script" }},
	"by a descriptor": {path: func(t *testing.T, _, path string) string {
		f, err := os.Open(path)
		check(t, err)
		t.Cleanup(func() { f.Close() })
		return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}},
	"in a memfd": {path: func(t *testing.T, _, path string) string {
		fd, err := unix.MemfdCreate("script", 0)
		check(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		raw, err := os.ReadFile(path)
		check(t, err)
		_, err = unix.Write(fd, raw)
		check(t, err)
		// a copy for reading, since nobody executes what is open for writing
		return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	}},
	"by env": {again: true},
}

// TestScripts: a digest for scripts that are executed and left alone, none for any other, at T1 with
// LSM programs; elsewhere for none.
func TestScripts(t *testing.T) {
	a, sensor := attestor(t)
	seen := false
	for _, h := range sensor.Hooks() {
		seen = seen || h.Name == "lsm/file_open" && h.State == hooks.On
	}
	t.Logf("tier %s, writes are seen: %v", sensor.Tier(), seen)
	self, err := os.Executable()
	check(t, err)
	for name, c := range scriptCases {
		t.Run(name, func(t *testing.T) {
			dir := place(t)
			path := filepath.Join(dir, "script")
			text := []byte("#!" + self + "\n")
			check(t, os.WriteFile(path, text, 0o755))
			f := c.run(t, a, dir, path)
			if got := f.Exec.ScriptFile; c.sound && seen && (got.SHA256 != sha256.Sum256(text) || got.Size != int64(len(text))) {
				t.Errorf("no digest: %+v", got)
			} else if !(c.sound && seen) && (!got.SHA256.IsZero() || got.Path != "") {
				t.Errorf("a digest: %+v", got)
			}
			if f.Exec.Script == c.again {
				t.Errorf("a script: %v", f.Exec.Script)
			}
		})
	}
	t.Run("open for writing when it is executed", func(t *testing.T) {
		path := filepath.Join(place(t), "script")
		check(t, os.WriteFile(path, []byte("#!"+self+"\n"), 0o755))
		mapShared(t, path)
		if err := exec.Command(path).Start(); !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("the kernel executes a script that is mapped for writing: %v", err)
		}
	})
}
