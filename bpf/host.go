// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
