// SPDX-License-Identifier: Apache-2.0

// Package process pins one process and reads what only /proc tells about it. It is the only
// package that touches pidfds and /proc/PID.
//
// A PID is a number that is used again, so every reading goes: the process is pinned by a
// pidfd, the kernel's record says which image it runs; read; still alive, still that image.
// What was read in between belongs to that image, or is thrown away.
//
// The agent must see the initial PID namespace: keys hold that namespace's numbers.
package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// Tasks answers which process and image a pidfd names (bpf.Sensor).
type Tasks interface {
	Key(pidfd int) (selectors.ProcessKey, error)
}

var (
	// ErrGone: the process has exited.
	ErrGone = errors.New("the process is gone")
	// ErrReplaced: the number belongs to another process now, or the process executed
	// another program.
	ErrReplaced = errors.New("the process is not the one it was")
	// ErrNoPath: the executable has no name any more (deleted, replaced, or a memfd).
	ErrNoPath = errors.New("the executable has no path")
)

// Process is one pinned process image. Its methods may be called from several goroutines.
type Process struct {
	key   selectors.ProcessKey
	tasks Tasks
	pidfd *os.File

	watch sync.Once
	done  chan struct{}
}

// Pin pins the process with the given key: ErrGone or ErrReplaced if it is not there any more.
func Pin(t Tasks, want selectors.ProcessKey) (*Process, error) {
	p, err := open(t, int(want.TGID))
	if err != nil {
		return nil, err
	}
	p.key = want
	if err := p.Still(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// PinPID pins whatever process has the number now, for questions that people ask by number.
func PinPID(t Tasks, pid int) (*Process, error) {
	p, err := open(t, pid)
	if err != nil {
		return nil, err
	}
	if p.key, err = p.now(); err == nil && int(p.key.TGID) != pid {
		err = fmt.Errorf("process %d is number %d in the initial PID namespace: run the agent there", pid, p.key.TGID)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func open(t Tasks, pid int) (*Process, error) {
	// Non-blocking, so that Go's poller watches it.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // EINVAL, ENOENT: a thread has the number
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("pinning process %d: %w", pid, err)
	}
	return &Process{tasks: t, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}, nil
}

// Key returns the key of the pinned image.
func (p *Process) Key() selectors.ProcessKey { return p.key }

// Still returns nil if the process lives and runs the same image, else ErrGone or ErrReplaced.
func (p *Process) Still() error {
	now, err := p.now()
	if err != nil {
		return err
	}
	if now != p.key {
		return fmt.Errorf("process %d: %w (exec %d started at %d, was exec %d started at %d)", p.key.TGID, ErrReplaced,
			now.ExecID, now.StartBoottime, p.key.ExecID, p.key.StartBoottime)
	}
	return nil
}

// now returns the key of the image that the process runs now; ErrGone if it has exited.
func (p *Process) now() (key selectors.ProcessKey, err error) {
	var exited bool
	errControl := p.control(func(fd int) {
		key, err = p.tasks.Key(fd)
		exited = hasExited(fd) // after the look-up: a reaped process has no record
	})
	switch {
	case errControl != nil:
		return key, errControl
	case exited:
		return key, ErrGone
	case err != nil:
		return key, fmt.Errorf("asking for the process's record: %w", err)
	}
	return key, nil
}

// Exited reports whether the process is dead, reaped or not.
func (p *Process) Exited() (exited bool, err error) {
	err = p.control(func(fd int) { exited = hasExited(fd) })
	return exited, err
}

// Ask calls f with the pidfd, which f must not keep.
func (p *Process) Ask(f func(pidfd int) error) (err error) {
	if closed := p.control(func(fd int) { err = f(fd) }); closed != nil {
		return closed
	}
	return err
}

func (p *Process) control(f func(fd int)) error {
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
	if err != nil {
		return fmt.Errorf("using a process that was let go: %w", err)
	}
	return nil
}

// hasExited reports whether the process is dead, reaped or not (pidfd_open(2)).
func hasExited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

// Done returns a channel that is closed when the process has exited or Close was called.
// The goroutine behind it waits in Go's poller and holds no thread.
func (p *Process) Done() <-chan struct{} {
	p.watch.Do(func() {
		raw, err := p.pidfd.SyscallConn()
		if err != nil { // closed
			close(p.done)
			return
		}
		go func() {
			defer close(p.done)
			_ = raw.Read(func(fd uintptr) bool { return hasExited(int(fd)) })
		}()
	})
	return p.done
}

// Close lets the process go.
func (p *Process) Close() error { return p.pidfd.Close() }

func (p *Process) proc(name string) string {
	return "/proc/" + strconv.FormatUint(uint64(p.key.TGID), 10) + "/" + name
}

// OpenExecutable opens the file that the process runs, whatever its name is now.
func (p *Process) OpenExecutable() (*os.File, error) {
	f, err := os.Open(p.proc("exe"))
	if err := p.after("opening the executable", err); err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return f, nil
}

// ExecutablePath returns the executable's path in the process's mount namespace; ErrNoPath
// if it has none.
func (p *Process) ExecutablePath() (string, error) {
	path, err := os.Readlink(p.proc("exe"))
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(p.proc("exe"), &st)
	}
	if err := p.after("reading the executable's path", err); err != nil {
		return "", err
	}
	if st.Nlink == 0 || strings.HasSuffix(path, " (deleted)") || !strings.HasPrefix(path, "/") {
		return "", ErrNoPath
	}
	return path, nil
}

// SupplementaryGroups returns the supplementary group IDs in the initial user namespace.
func (p *Process) SupplementaryGroups() ([]uint32, error) {
	status, err := os.ReadFile(p.proc("status"))
	if err := p.after("reading the supplementary groups", err); err != nil {
		return nil, err
	}
	s, err := parseStatus(status)
	return s.Groups, err
}

// after judges a reading: it counts only if the process is still the pinned image, and if it
// is not, that explains a reading that failed.
func (p *Process) after(doing string, err error) error {
	if still := p.Still(); still != nil {
		return fmt.Errorf("%s: %w", doing, still)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
