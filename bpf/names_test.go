// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// rawConnect connects a new socket with these bytes as the address, which libraries do not allow.
func rawConnect(t *testing.T, path string, length int) {
	t.Helper()
	fd := clientSocket()
	t.Cleanup(func() { unix.Close(fd) })
	name := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i := range path {
		name.Path[i] = int8(path[i])
	}
	for i := len(path) + 1; i < len(name.Path); i++ {
		name.Path[i] = 'x' // behind the NUL: not a part of the name
	}
	if length <= 2+len(path) && len(path) < len(name.Path) { // no NUL is passed, what follows is not either
		name.Path[len(path)] = 'x'
	}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(length)); errno != 0 {
		t.Fatal(errno)
	}
}

// TestNames: at T2 a connect is recorded if it names the socket as the agent does, in whatever
// way it gets there, or by a name that the configuration adds.
func TestNames(t *testing.T) {
	pins, dir := filepath.Join(bpffs(t), "assay"), t.TempDir()
	s, err := Load(Config{PinDir: pins, SocketNames: []string{"other.sock"}, Logger: testLogger(t)})
	needKernel(t, err)
	defer func() { check(errors.Join(s.Close(), Unpin(pins))) }()
	short, err := os.MkdirTemp("", "")
	check(err)
	defer os.RemoveAll(short)
	path := filepath.Join(short, "api.sock")
	l := clientSocket()
	defer unix.Close(l)
	check(s.Watch(l, path))
	check(unix.Bind(l, &unix.SockaddrUnix{Name: path}))
	check(unix.Listen(l, 8))
	check(os.Symlink(short, filepath.Join(dir, "link")))
	for _, name := range []string{"other.sock", "alias.sock", "xapi.sock", "api.sockx", "api"} {
		check(os.Symlink(path, filepath.Join(short, name)))
	}
	t.Chdir(short)
	full := strings.Repeat("/", 108-len(path)) + path
	for _, c := range []struct {
		name, path string
		length     int // of the address, 0: with its NUL
		recorded   bool
	}{
		{"direct", path, 0, true},
		{"without NUL", path, 2 + len(path), true},
		{"the whole address", path, unix.SizeofSockaddrUnix, true},
		{"relative", "api.sock", 0, true},
		{"relative, without NUL", "api.sock", 2 + len("api.sock"), true},
		{"with dots", "./../" + filepath.Base(short) + "//api.sock", 0, true},
		{"by a directory's link", filepath.Join(dir, "link", "api.sock"), 0, len(dir) < 90},
		{"as long as can be", full, unix.SizeofSockaddrUnix, true},
		{"by a link that is configured", filepath.Join(short, "other.sock"), 0, true},
		{"by another link", filepath.Join(short, "alias.sock"), 0, false},
		{"longer in front", "xapi.sock", 0, false},
		{"longer behind", "api.sockx", 0, false},
		{"shorter", "api", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.path) > 107 && c.length == 0 {
				t.Fatalf("%s is too long", c.path)
			}
			if c.length == 0 {
				c.length = 2 + len(c.path) + 1
			}
			rawConnect(t, c.path, c.length)
			b, err := s.Binding(accept(t, l))
			if s.Tier() == selectors.TierT1 { // the socket counts, not its name
				c.recorded = true
			}
			if c.recorded && (err != nil || b.Task.Process != me(t, s).Process) || !c.recorded && !errors.Is(err, record.ErrNoBinding) {
				t.Errorf("binding %+v, %v; want one: %v", b.Task.Process, err, c.recorded)
			}
		})
	}
}

func TestSocketNamesAreChecked(t *testing.T) {
	for _, names := range [][]string{{""}, {"a/b"}, {".."}, {"a\x00"}, {strings.Repeat("x", 108)}, strings.Split("1 2 3 4 5 6 7 8 9", " ")} {
		if err := checkNames(names); err == nil {
			t.Errorf("%q is accepted", names)
		}
	}
	if err := checkNames([]string{"api.sock", strings.Repeat("x", 107), "3", "4", "5", "6", "7", "8"}); err != nil {
		t.Error(err)
	}
}
