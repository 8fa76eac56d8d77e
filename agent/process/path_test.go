// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// readPath returns what OpenPath finds, "" for a path that is not followed.
func readPath(t *testing.T, p *Process, path string) string {
	t.Helper()
	f, err := p.OpenPath(path, nil)
	if errors.Is(err, ErrPath) {
		if f != nil {
			t.Errorf("%s: a file and %v", path, err)
		}
		return ""
	} else if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer f.Close()
	return string(must(io.ReadAll(f)))
}

func TestOpenPath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	check(os.MkdirAll("a/b", 0o755))
	check(os.WriteFile("a/b/file", []byte("content"), 0o644))
	check(os.WriteFile("top", []byte("top"), 0o644))
	check(os.Symlink("b/../b/file", "a/relative"))
	check(os.Symlink(filepath.Join(dir, "a"), "absolute"))
	check(os.Symlink("loop", "loop"))
	check(syscall.Mkfifo("fifo", 0o600))
	held := must(os.Open("top"))
	defer held.Close()
	p := pin(t, os.Getpid())
	for path, want := range map[string]string{
		"a/b/file": "content", dir + "/a/b/file": "content", dir + "/a//./b/file": "content",
		"a/relative": "content", dir + "/a/relative": "content", dir + "/absolute/b/file": "content",
		"a/../top": "top", dir + "/a/b/../../top": "top", "/../../.." + dir + "/top": "top",
		"absolute/b/file": "", "../" + filepath.Base(dir) + "/top": "", "a/../../x": "", // out of the working directory
		"loop": "", dir + "/loop": "", "a": "", "/": "", ".": "", "": "", "fifo": "", "missing": "", "top/x": "", "top/": "",
		"/proc/self/exe": "", "/dev/fd/0": "", "/proc/self/cwd/top": "", "/sys/kernel/notes": "",
	} {
		if got := readPath(t, p, path); got != want {
			t.Errorf("%q led to %q, want %q", path, got, want)
		}
	}
}

// A memfd and other descriptors have no path that leads to them.
func TestOpenPathOfDescriptor(t *testing.T) {
	fd := must(unix.MemfdCreate("x", 0))
	defer unix.Close(fd)
	must(unix.Write(fd, []byte("x")))
	for _, dir := range []string{"/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"} {
		if got := readPath(t, pin(t, os.Getpid()), dir+strconv.Itoa(fd)); got != "" {
			t.Errorf("%s led to %q", dir, got)
		}
	}
}

func TestOpenPathShowsTheWay(t *testing.T) {
	dir := must(filepath.EvalSymlinks(t.TempDir()))
	check(os.Mkdir(filepath.Join(dir, "open"), 0o755))
	check(os.Chmod(filepath.Join(dir, "open"), 0o777))
	check(os.WriteFile(filepath.Join(dir, "open/file"), nil, 0o644))
	check(os.Symlink("open", filepath.Join(dir, "link")))
	var links, dirs, open int
	f, err := pin(t, os.Getpid()).OpenPath(filepath.Join(dir, "link/file"), func(s Step) error {
		switch {
		case s.Mode&unix.S_IFMT == unix.S_IFLNK:
			links++
		case s.Mode&0o777 == 0o777 && s.Mode&unix.S_ISVTX == 0:
			open++
		default:
			dirs++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if want := strings.Count(dir, "/") + 1; links != 1 || open != 1 || dirs != want {
		t.Errorf("%d links, %d open directories, %d others; want 1, 1, %d", links, open, dirs, want)
	}
	no := errors.New("no")
	if f, err := pin(t, os.Getpid()).OpenPath(filepath.Join(dir, "link/file"), func(Step) error { return no }); !errors.Is(err, no) || f != nil {
		t.Errorf("a refused way: %v", err)
	}
}

// The path is the process's, not the agent's: its root is another one, and its links stay there.
func TestOpenPathInItsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("ASSAY_NO_SKIP") == "1" {
			t.Fatal("chroot needs root")
		}
		t.Skip("chroot needs root")
	}
	dir := t.TempDir()
	check(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	check(os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("jail"), 0o644))
	check(os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	check(os.Symlink("../../../../../../etc/passwd", filepath.Join(dir, "etc/out")))
	c := start(t, copyOf(t))
	fmt.Fprintf(c.in, "chroot %s\n", dir)
	c.ready()
	p := pin(t, c.Process.Pid)
	for _, path := range []string{"/etc/passwd", "/link", "/etc/out", "etc/passwd"} {
		if got := readPath(t, p, path); got != "jail" {
			t.Errorf("%s led to %q", path, got)
		}
	}
	check(c.in.Close())
	check(c.Wait())
	if _, err := p.OpenPath("/etc/passwd", nil); !errors.Is(err, ErrGone) {
		t.Errorf("a path of a process that is gone: %v", err)
	}
}

func FuzzOpenPath(f *testing.F) {
	dir := f.TempDir()
	check(os.Symlink("../..", filepath.Join(dir, "up")))
	p := must(PinPID(kernel{}, os.Getpid()))
	f.Cleanup(func() { p.Close() })
	f.Chdir(dir)
	f.Add("up/../x")
	f.Add("/proc/1/root/..//./etc")
	f.Fuzz(func(t *testing.T, path string) {
		if file, err := p.OpenPath(path, nil); err == nil {
			if !strings.HasPrefix(path, "/") {
				t.Errorf("%q led out of an empty directory", path)
			}
			file.Close()
		}
	})
}
