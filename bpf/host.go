// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// checkHost finds what would make every load fail, and says what to do about it.
func checkHost(pinDir string) error {
	if missing, err := missingCapabilities(); err != nil {
		return fmt.Errorf("reading the agent's capabilities: %w", err)
	} else if len(missing) > 0 {
		list := strings.Join(missing, ", ")
		return &problem{kind: ErrPrivilege, sentence: "the sensor needs " + list +
			": start the agent as root, or give its service these capabilities (systemd: AmbientCapabilities=" + strings.Join(missing, " ") + ")"}
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return &problem{kind: ErrNoBTF, cause: err, sentence: "this kernel has no type information in /sys/kernel/btf/vmlinux: " +
			"boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y"}
	}
	return checkPinDir(pinDir)
}

func missingCapabilities() ([]string, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return nil, err
	}
	effective := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	return lacking(effective), nil
}

// lacking names the capabilities that the set does not cover. CAP_SYS_ADMIN implies all of
// them but the right to open files by handle.
func lacking(effective uint64) []string {
	has := func(c uint) bool { return effective&(1<<c) != 0 }
	var out []string
	for _, c := range []struct {
		bit     uint
		name    string
		implied bool
	}{
		{unix.CAP_BPF, "CAP_BPF", true},
		{unix.CAP_PERFMON, "CAP_PERFMON", true},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", true},
		{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", false},
	} {
		if !has(c.bit) && !(c.implied && has(unix.CAP_SYS_ADMIN)) {
			out = append(out, c.name)
		}
	}
	return out
}

func checkPinDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return &problem{kind: ErrNotBPFFS, sentence: fmt.Sprintf("the pin directory %q must be an absolute path, for example /sys/fs/bpf/assay", dir)}
	}
	at := filepath.Clean(dir)
	for { // the nearest folder that exists
		var fs unix.Statfs_t
		err := unix.Statfs(at, &fs)
		if err == nil && fs.Type == unix.BPF_FS_MAGIC {
			return nil
		}
		if errors.Is(err, os.ErrNotExist) && at != "/" {
			at = filepath.Dir(at)
			continue
		}
		mount := "/sys/fs/bpf"
		if !strings.HasPrefix(dir, mount+"/") {
			mount = filepath.Dir(dir)
		}
		return &problem{kind: ErrNotBPFFS, cause: err, sentence: fmt.Sprintf(
			"the pin directory %s is not on a BPF file system: run `mount -t bpf bpf %s`, or set another pin directory", dir, mount)}
	}
}

// cgroupTree is a mount of the unified hierarchy.
type cgroupTree struct {
	mount string
	dir   *os.File
}

// openCgroup opens the given mount point, or finds one.
func openCgroup(mount string) (cgroupTree, error) {
	if mount == "" {
		raw, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return cgroupTree{}, fmt.Errorf("looking for the cgroup v2 mount: %w", err)
		}
		if mount = findCgroup2(raw); mount == "" {
			return cgroupTree{}, &problem{kind: ErrNoCgroup2, sentence: "no cgroup v2 hierarchy is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1"}
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mount, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return cgroupTree{}, &problem{kind: ErrNoCgroup2, cause: err, sentence: fmt.Sprintf("%s is not a cgroup v2 mount: set the cgroup root to one, or leave it empty to search", mount)}
	}
	dir, err := os.Open(mount)
	if err != nil {
		return cgroupTree{}, fmt.Errorf("opening the cgroup v2 mount: %w", err)
	}
	return cgroupTree{filepath.Clean(mount), dir}, nil
}

// findCgroup2 reads mountinfo (proc_pid_mountinfo(5)) and returns the mount point of a
// cgroup2 file system, one that shows the whole hierarchy if there is one, or "".
func findCgroup2(mountinfo []byte) string {
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

// path returns where the cgroup is, relative to the hierarchy's root, with a leading slash.
func (c cgroupTree) path(id uint64) (string, error) {
	if c.dir == nil {
		return "", ErrNoCgroup2
	}
	raw := binary.NativeEndian.AppendUint64(nil, id)
	fd, err := unix.OpenByHandleAt(int(c.dir.Fd()), unix.NewFileHandle(fileidKernfs, raw), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("opening cgroup %d (it may be removed): %w", id, err)
	}
	defer unix.Close(fd)
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("reading the path of cgroup %d: %w", id, err)
	}
	rest, ok := strings.CutPrefix(name, c.mount)
	if !ok || strings.HasSuffix(name, " (deleted)") {
		return "", fmt.Errorf("cgroup %d is at %q, which is not below %s", id, name, c.mount)
	}
	if rest == "" {
		rest = "/"
	}
	return rest, nil
}
