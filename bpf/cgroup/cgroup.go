// SPDX-License-Identifier: Apache-2.0

// Package cgroup finds the hierarchy of cgroup v2, and in it paths by the kernel's ids and ids by paths.
package cgroup

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is an open mount of the unified hierarchy.
type Tree struct {
	// Mount is where it is mounted.
	Mount string
	dir   *os.File
}

// Open opens the given mount point, or finds one if that is "". Its errors are sentences for the operator.
func Open(mount string) (*Tree, error) {
	if mount == "" {
		raw, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return nil, fmt.Errorf("looking for the cgroup v2 mount: %w", err)
		}
		if mount = findMount(raw); mount == "" {
			return nil, errors.New("no cgroup v2 hierarchy is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1")
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mount, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not a cgroup v2 mount: set the cgroup root to one, or leave it empty to search", mount)
	}
	dir, err := os.Open(mount)
	if err != nil {
		return nil, fmt.Errorf("opening the cgroup v2 mount: %w", err)
	}
	return &Tree{filepath.Clean(mount), dir}, nil
}

// Close ends the use of the tree.
func (t *Tree) Close() error { return t.dir.Close() }

// findMount reads mountinfo (proc_pid_mountinfo(5)) and returns the mount point of a
// cgroup2 file system, one that shows the whole hierarchy if there is one, or "".
func findMount(mountinfo []byte) string {
	var found string
	for line := range bytes.Lines(mountinfo) {
		front, back, ok := strings.Cut(string(line), " - ")
		fields, types := strings.Fields(front), strings.Fields(back)
		if !ok || len(fields) < 5 || len(types) < 1 || types[0] != "cgroup2" {
			continue
		}
		if fields[3] == "/" {
			return unescape(fields[4])
		}
		if found == "" {
			found = unescape(fields[4])
		}
	}
	return found
}

// unescape undoes the kernel's octal escapes (\040 is a blank).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// fileidKernfs is FILEID_KERNFS of linux/exportfs.h: eight bytes, the kernfs node's id.
const fileidKernfs = 0xfe

// Path returns where the cgroup of this id is, relative to the hierarchy's root, with a leading slash.
func (t *Tree) Path(id uint64) (string, error) {
	raw := binary.NativeEndian.AppendUint64(nil, id)
	fd, err := unix.OpenByHandleAt(int(t.dir.Fd()), unix.NewFileHandle(fileidKernfs, raw), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("opening cgroup %d (it may be removed): %w", id, err)
	}
	defer unix.Close(fd)
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("reading the path of cgroup %d: %w", id, err)
	}
	rest, ok := strings.CutPrefix(name, t.Mount)
	if !ok || strings.HasSuffix(name, " (deleted)") {
		return "", fmt.Errorf("cgroup %d is at %q, which is not below %s", id, name, t.Mount)
	}
	return cmp.Or(rest, "/"), nil
}

// ID returns the id of the cgroup that has such a path now: its folder's inode. It is os.ErrNotExist if none has.
func (t *Tree) ID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(t.Mount, path), &st); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}
