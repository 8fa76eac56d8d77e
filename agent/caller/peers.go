// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Peers stands in for the sensor where no BPF program can be loaded (tier T3): the kernel
// names the process that connected by a pidfd (SO_PEERPIDFD, Linux 6.5) and the user and group
// that it had then (SO_PEERCRED); the rest is /proc, read while that process lives. As long as
// the socket's own pidfd says "alive", its number is no other process's.
//
// It is blind to what happens between looks. Most of all: a process that connects, sends its
// request, and executes another program before the agent accepts is taken for that program.
// docs/evidence.md lists what else.
type Peers struct {
	bootID string

	mu      sync.Mutex
	cgroups map[uint64]string // of the paths that were seen
}

// maxCgroups bounds the memory on hosts that make cgroups all the time.
const maxCgroups = 4096

// NewPeers returns Peers, or says what this kernel lacks.
func NewPeers() (*Peers, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot id: %w", err)
	}
	p := &Peers{bootID: strings.TrimSpace(string(boot)), cgroups: map[uint64]string{}}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("trying tier t3: %w", err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if _, err := p.Binding(fds[0]); errors.Is(err, unix.ENOPROTOOPT) {
		return nil, errors.New("tier t3 needs SO_PEERPIDFD: boot Linux 6.5 or later")
	} else if err != nil {
		return nil, fmt.Errorf("trying tier t3 on the agent itself: %w; mount /proc of the agent's own PID namespace", err)
	}
	return p, nil
}

// Tier returns T3.
func (p *Peers) Tier() selectors.Tier { return selectors.TierT3 }

// Watch has nothing to do: the kernel keeps every socket's peer.
func (p *Peers) Watch(int, string) error { return nil }

// Binding returns who connected the accepted socket and how that process is now.
func (p *Peers) Binding(connFD int) (record.Binding, error) {
	pidfd, err := process.Peer(connFD)
	if err != nil {
		return record.Binding{}, fmt.Errorf("asking for the peer's pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	s, err := p.look(pidfd)
	if err != nil {
		return record.Binding{}, err
	}
	then, err := unix.GetsockoptUcred(connFD, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return record.Binding{}, fmt.Errorf("asking for the peer's user: %w", err)
	}
	b := record.Binding{Tier: selectors.TierT3, Task: task(s), CgroupID: s.CgroupID, Credentials: rights(s)}
	b.Now = record.Now{Known: true, CgroupID: b.CgroupID, Credentials: b.Credentials}
	b.UID, b.GID = then.Uid, then.Gid
	return b, nil
}

// Task returns the process that a pidfd names.
func (p *Peers) Task(pidfd int) (record.Task, error) {
	s, err := p.look(pidfd)
	return task(s), err
}

// Key returns the key of the image that the process runs.
func (p *Peers) Key(pidfd int) (selectors.ProcessKey, error) {
	key, err := process.KeyOf(p.bootID, pidfd)
	return key, noRecord(err)
}

// Now returns how a process is.
func (p *Peers) Now(key selectors.ProcessKey) (record.Now, error) {
	pinned, err := process.Pin(p, key)
	if err != nil {
		return record.Now{}, err
	}
	defer pinned.Close()
	var s process.Snapshot
	err = pinned.Ask(func(pidfd int) (err error) {
		s, err = p.look(pidfd)
		return err
	})
	return record.Now{Known: err == nil, CgroupID: s.CgroupID, Credentials: rights(s)}, err
}

// CgroupPath returns the path of a cgroup that a process was seen in.
func (p *Peers) CgroupPath(id uint64) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path, ok := p.cgroups[id]; ok {
		return path, nil
	}
	return "", errors.New("the kernel tells of no unified hierarchy, or the cgroup has been removed")
}

// Exec, Code and FileState are the sensor's to know.
func (p *Peers) Exec(int, uint64) (record.ExecInfo, error) {
	return record.ExecInfo{}, record.ErrNoRecord
}

// Code is unknown.
func (p *Peers) Code(int) (record.Code, error) { return record.Code{}, nil }

// FileState is unknown.
func (p *Peers) FileState(int) (token, wgen uint64, err error) { return 0, 0, record.ErrNoRecord }

func (p *Peers) look(pidfd int) (process.Snapshot, error) {
	s, err := process.Look(p.bootID, pidfd)
	if err != nil {
		return s, noRecord(err)
	}
	if s.CgroupID != 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.cgroups) >= maxCgroups {
			clear(p.cgroups)
		}
		p.cgroups[s.CgroupID] = s.CgroupPath
	}
	return s, nil
}

// noRecord says that a process is gone in the sensor's words also.
func noRecord(err error) error {
	if errors.Is(err, process.ErrGone) {
		return fmt.Errorf("%w: %w", record.ErrNoRecord, err)
	}
	return err
}

const tmpfsMagic = 0x01021994

func task(s process.Snapshot) record.Task {
	t := record.Task{Process: s.Key, Executable: record.File{Inode: s.Image.Inode, FSMagic: s.Image.FSMagic, Links: uint32(s.Image.Links)}}
	if s.Image.Links == 0 && s.Image.FSMagic == tmpfsMagic {
		t.Flags = record.MemoryFile
	}
	return t
}

func rights(s process.Snapshot) record.Credentials {
	return record.Credentials{
		RealUID: s.UIDs[0], UID: s.UIDs[1], SavedUID: s.UIDs[2], FSUID: s.UIDs[3],
		RealGID: s.GIDs[0], GID: s.GIDs[1], SavedGID: s.GIDs[2], FSGID: s.GIDs[3],
		Permitted: s.Permitted, Effective: s.Effective, LoginUID: s.LoginUID, SessionID: s.SessionID,
		NoNewPrivs: s.NoNewPrivs, Seccomp: s.Seccomp, Groups: record.GroupsOf(s.Groups),
	}
}
