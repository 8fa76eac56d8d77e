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

// checkHost finds what would make every load and take-over fail, and says what to do about it.
func checkHost(pinDir string) error {
	if missing, err := missingCapabilities(toAnswer); err != nil {
		return err
	} else if len(missing) > 0 {
		return &problem{kind: ErrPrivilege, sentence: "the sensor needs " + strings.Join(missing, ", ") + " to find the paths of cgroups: " + giveThem(missing)}
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return &problem{kind: ErrNoBTF, cause: err, sentence: "this kernel has no type information in /sys/kernel/btf/vmlinux: " +
			"boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y"}
	}
	return checkPinDir(pinDir)
}

// checkMayLoad finds what keeps this process from putting programs into the kernel.
func checkMayLoad() error {
	missing, err := missingCapabilities(toLoad)
	if err != nil || len(missing) == 0 {
		return err
	}
	return &problem{kind: ErrPrivilege, sentence: "the sensor is not in the kernel, and to put it there needs " + strings.Join(missing, ", ") +
		": run `assay-agent load --owner USER` as root before the agent (assay-sensor.service), or " + giveThem(missing)}
}

func giveThem(missing []string) string {
	return "start the agent as root, or give its service these capabilities (systemd: AmbientCapabilities=" + strings.Join(missing, " ") + ")"
}

// capability is one that the sensor needs.
type capability struct {
	bit     uint
	name    string
	implied bool // by CAP_SYS_ADMIN
}

// What it takes to put the sensor into the kernel, and to use one that is there.
var (
	toLoad   = []capability{{unix.CAP_BPF, "CAP_BPF", true}, {unix.CAP_PERFMON, "CAP_PERFMON", true}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", true}}
	toAnswer = []capability{{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", false}} // open_by_handle_at(2)
)

func missingCapabilities(needed []capability) ([]string, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return nil, fmt.Errorf("reading the agent's capabilities: %w", err)
	}
	effective := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	return lacking(effective, needed), nil
}

// lacking names the capabilities that the set does not cover.
func lacking(effective uint64, needed []capability) []string {
	has := func(c uint) bool { return effective&(1<<c) != 0 }
	var out []string
	for _, c := range needed {
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
