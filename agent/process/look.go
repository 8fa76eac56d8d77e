// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// What /proc tells of a process that a pidfd names: the ground of tier T3, where no sensor
// keeps records. A reading counts if the process lives after it: until it is reaped, nobody
// else gets its number.

// ErrNotSeen: the process is in no PID namespace that the agent sees.
var ErrNotSeen = errors.New("the process has no number in the agent's PID namespace: run the agent in the host's")

// Image is the program that a process runs now.
type Image struct {
	Inode, Device uint64 // as stat(2) has them; overlayfs shows its own
	FSMagic       uint64 // statfs(2)
	Links         uint64
}

// Snapshot is a process at one moment.
type Snapshot struct {
	Key   selectors.ProcessKey
	Image Image
	Status
	// LoginUID and SessionID are the audit system's, selectors.Unset when it set none.
	LoginUID, SessionID uint32
	// CgroupPath is that of the unified hierarchy, CgroupID its inode number; empty and 0 where
	// the kernel does not tell.
	CgroupPath string
	CgroupID   uint64
}

// Peer returns a pidfd of the process that connected, or listened on, the other end of a Unix
// socket (SO_PEERPIDFD, Linux 6.5). ErrGone if that was reaped. The caller closes it.
func Peer(socket int) (pidfd int, err error) {
	pidfd, err = unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) { // before 6.16
		return -1, ErrGone
	}
	return pidfd, err
}

// KeyOf returns the key of the image that a pidfd's process runs. ExecID is not the sensor's: it is
// made of what the kernel chooses anew at execve, the addresses of stack, vdso, program and
// interpreter (the auxiliary vector, 50 random bits and more), and of the program's inode and ctime. A
// process that turned randomisation off for itself (personality(2)) and executes the very file
// that it runs already keeps its key.
func KeyOf(bootID string, pidfd int) (selectors.ProcessKey, error) {
	key, _, err := keyOf(bootID, pidfd)
	return key, err
}

// Look returns the process that a pidfd names.
func Look(bootID string, pidfd int) (Snapshot, error) {
	for range maxReadings {
		before, _, err := keyOf(bootID, pidfd)
		if err != nil {
			return Snapshot{}, err
		}
		s, errRead := look(before.TGID)
		if s.Key, s.Image, err = keyOf(bootID, pidfd); err != nil {
			return Snapshot{}, err
		}
		if errRead != nil {
			return Snapshot{}, errRead
		}
		if s.Key == before {
			return s, nil
		}
	}
	return Snapshot{}, fmt.Errorf("%w: it executes one program after the other", ErrReplaced)
}

// maxReadings is how often a process is read that changes while it is read.
const maxReadings = 5

func keyOf(bootID string, pidfd int) (selectors.ProcessKey, Image, error) {
	pid, err := number(pidfd)
	if err != nil {
		return selectors.ProcessKey{}, Image{}, err
	}
	key := selectors.ProcessKey{BootID: bootID, TGID: uint32(pid)}
	var img Image
	var last mark
	for range maxReadings {
		now, errRead := readMark(pid)
		if hasExited(pidfd) {
			return selectors.ProcessKey{}, Image{}, ErrGone
		}
		if errRead != nil {
			return selectors.ProcessKey{}, Image{}, errRead
		}
		if now == last {
			key.StartBoottime, key.ExecID, img = now.start, now.id(), now.image
			return key, img, nil
		}
		last = now
	}
	return selectors.ProcessKey{}, Image{}, fmt.Errorf("%w: it executes one program after the other", ErrReplaced)
}

// number returns the process number of a pidfd (proc_pid_fdinfo(5)).
func number(pidfd int) (int, error) {
	raw, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, fmt.Errorf("reading a pidfd's number: %w", err)
	}
	return parseNumber(raw)
}

func parseNumber(fdinfo []byte) (int, error) {
	for line := range bytes.Lines(fdinfo) {
		text, ok := bytes.CutPrefix(line, []byte("Pid:"))
		if !ok {
			continue
		}
		pid, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 32)
		switch {
		case err != nil || pid < -1:
			return 0, fmt.Errorf("malformed number of a pidfd: %q", text)
		case pid == -1:
			return 0, ErrGone
		case pid == 0:
			return 0, ErrNotSeen
		}
		return int(pid), nil
	}
	return 0, errors.New("not a pidfd")
}

// mark is what changes when a process becomes another one, or executes a program.
type mark struct {
	start  uint64
	image  Image
	ctime  unix.Timespec
	vector [sha256.Size]byte
}

func (m mark) id() uint64 {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, m)       // a hash takes everything
	return binary.LittleEndian.Uint64(h.Sum(nil)) | 1 // never 0, which is none
}

func readMark(pid int) (m mark, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return m, err
	}
	if m.start, err = parseStart(stat); err != nil {
		return m, err
	}
	vector, err := os.ReadFile(dir + "/auxv")
	if err != nil {
		return m, err
	}
	if len(vector) == 0 {
		return m, errors.New("the process has no program")
	}
	m.vector = sha256.Sum256(vector)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Stat(dir+"/exe", &st), unix.Statfs(dir+"/exe", &fs)); err != nil {
		return m, fmt.Errorf("looking at the program of process %d: %w", pid, err)
	}
	m.image, m.ctime = Image{st.Ino, st.Dev, uint64(fs.Type), uint64(st.Nlink)}, st.Ctim
	return m, nil
}

// parseStart returns when a process was started, in nanoseconds since boot, to 10 ms (field 22
// of proc_pid_stat(5)).
func parseStart(stat []byte) (uint64, error) {
	const afterName, tick = 22 - 3, 10_000_000 // USER_HZ is 100
	i := bytes.LastIndexByte(stat, ')')        // the name may hold anything
	if fields := bytes.Fields(stat[i+1:]); i >= 0 && len(fields) > afterName {
		if ticks, err := strconv.ParseUint(string(fields[afterName]), 10, 64); err == nil && ticks <= 1<<63/tick {
			return ticks * tick, nil
		}
	}
	return 0, errors.New("malformed /proc/PID/stat")
}

func look(pid uint32) (s Snapshot, err error) {
	dir := "/proc/" + strconv.FormatUint(uint64(pid), 10) + "/"
	raw, err := os.ReadFile(dir + "status")
	if err != nil {
		return s, err
	}
	if s.Status, err = parseStatus(raw); err != nil {
		return s, err
	}
	if s.LoginUID, err = auditID(dir + "loginuid"); err != nil {
		return s, err
	}
	if s.SessionID, err = auditID(dir + "sessionid"); err != nil {
		return s, err
	}
	s.CgroupPath, s.CgroupID, err = unifiedCgroup(dir + "cgroup")
	return s, err
}

// auditID reads a number of the audit system; a kernel without it sets none.
func auditID(path string) (uint32, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return selectors.Unset, nil
	} else if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32)
	return uint32(n), err
}

// cgroupMount is where the unified hierarchy is (cgroups(7)), "" if it is not there.
var cgroupMount = map[cgroups.CGMode]string{cgroups.Unified: "/sys/fs/cgroup", cgroups.Hybrid: "/sys/fs/cgroup/unified"}[cgroups.Mode()]

// unifiedCgroup returns the path and the id of a process's cgroup. A cgroup that was removed, or
// is outside the agent's cgroup namespace, has none.
func unifiedCgroup(file string) (path string, id uint64, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", 0, err
	}
	path = parseUnified(raw)
	if path == "" || cgroupMount == "" {
		return "", 0, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(cgroupMount+path, &st); err != nil {
		return "", 0, nil // removed
	}
	return path, st.Ino, nil
}

func parseUnified(raw []byte) string {
	for line := range bytes.Lines(raw) {
		text, ok := bytes.CutPrefix(line, []byte("0::"))
		if !ok {
			continue
		}
		path := strings.TrimSuffix(string(text), "\n")
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") || slices.Contains(strings.Split(path, "/"), "..") {
			return ""
		}
		return path
	}
	return ""
}
