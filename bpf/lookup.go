// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Tier returns the strength of the evidence that this sensor gives.
func (s *Sensor) Tier() selectors.Tier { return s.tier }

// BootID returns /proc/sys/kernel/random/boot_id.
func (s *Sensor) BootID() string { return s.bootID }

// Hooks returns every hook that the sensor knows and whether it works.
func (s *Sensor) Hooks() []hooks.Hook { return s.kernel.Hooks() }

// CgroupPath returns where a cgroup v2 is, relative to the root of the hierarchy, with a
// leading slash. It fails when the cgroup has been removed.
func (s *Sensor) CgroupPath(id uint64) (string, error) { return s.cgroup.Path(id) }

// Watch makes connections to a Unix socket that will listen at path yield bindings. Call it
// before listen(2), else early connections have none. At T2 only those yield one that name the
// socket by its path's last component, or by one of Config.SocketNames. Not for concurrent use.
func (s *Sensor) Watch(listenFD int, path string) error {
	if s.tier == selectors.TierT1 {
		return s.watchSocket(listenFD)
	}
	if err := s.watchName(filepath.Base(path)); err != nil {
		return fmt.Errorf("watching the listening socket: %w", err)
	}
	return s.writeSettings(build())
}

// watchSocket has connects to the socket bound to it, at tiers whose hooks see the socket.
func (s *Sensor) watchSocket(fd int) error {
	if s.tier != selectors.TierT1 {
		return nil
	}
	if err := s.kernel.Maps["listeners"].Put(uint32(fd), uint32(1)); err != nil {
		return fmt.Errorf("watching the listening socket: %w", err)
	}
	return nil
}

// Binding returns who connected the accepted socket, how that process is now, and at T2 also
// who holds the other end at this moment. ErrNoBinding if the kernel has no record.
func (s *Sensor) Binding(connFD int) (b record.Binding, err error) {
	if s.tier == selectors.TierT2 {
		b, err = s.answer.ask(connFD, s.bootID)
	} else {
		b, err = s.lookUpBinding(connFD)
	}
	if err != nil {
		return record.Binding{}, err
	}
	if b.Tier != s.tier {
		return record.Binding{}, fmt.Errorf("%w: the record is of tier %s", record.ErrNoBinding, b.Tier)
	}
	s.complete(&b.Task)
	b.Credentials.Namespaces.MarkHost(s.host)
	b.Now.Credentials.Namespaces.MarkHost(s.host)
	return b, nil
}

// lookUpBinding reads what is kept on the accepted socket (T1), after asking for how the caller is now.
func (s *Sensor) lookUpBinding(connFD int) (record.Binding, error) {
	before := bootNow()
	var name [record.AnswerName]byte
	getsockname(connFD, &name)
	raw := s.buffers.Get().(*[record.BindingSize]byte)
	defer s.buffers.Put(raw)
	key := uint32(connFD)
	if err := s.kernel.Maps["bindings"].Lookup(&key, raw); errors.Is(err, ebpf.ErrKeyNotExist) {
		return record.Binding{}, record.ErrNoBinding
	} else if err != nil {
		return record.Binding{}, fmt.Errorf("looking up the binding: %w", err)
	}
	b, asked, err := record.DecodeBinding(raw[:], s.bootID)
	if asked < before { // the hook is unavailable
		b.Now = record.Now{}
	}
	return b, err
}

// complete tells what the hooks would have seen of tampering with the task's image: nothing
// for sure if that ran before they were attached.
func (s *Sensor) complete(t *record.Task) {
	if t.Flags.Has(record.Observed) && t.Process.ExecID >= s.watched.since {
		t.Integrity.Sees = s.watched.kinds
	}
	t.Integrity.Known = t.Integrity.Sees == record.AllTampering
}

// getsockname asks the kernel for the socket's name for the sake of the hook that runs then.
func getsockname(fd int, name *[record.AnswerName]byte) {
	size := uint32(len(name))
	_, _, _ = unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&size)))
}

func bootNow() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return ^uint64(0) // no clock: every answer is too old
	}
	return uint64(t.Nano())
}

// Task returns the record of the process that a pidfd names. ErrNoRecord if there is none.
func (s *Sensor) Task(pidfd int) (record.Task, error) {
	for range 100 {
		raw, err := s.stable("tasks", pidfd)
		if err != nil {
			return record.Task{}, err
		}
		var far []byte
		if record.HasFar(raw) {
			if far, err = s.stable("far", pidfd); errors.Is(err, record.ErrNoRecord) {
				continue // it exits, or executes another program
			} else if err != nil {
				return record.Task{}, err
			}
		}
		t, err := record.DecodeTask(raw, far, s.bootID)
		if errors.Is(err, record.ErrTorn) {
			continue
		}
		if err == nil {
			s.complete(&t)
		}
		return t, err
	}
	return record.Task{}, errTooFast
}

var errTooFast = errors.New("looking up a process: it executes programs faster than it can be read")

// Exec returns what is known of an execve beside the task's record, by a process that runs its
// image. ErrNoRecord if there is nothing (it was of no script and no digest is wanted), or if the
// process runs another image now.
func (s *Sensor) Exec(pidfd int, execID uint64) (record.ExecInfo, error) {
	raw, err := s.stable("execs", pidfd)
	if err != nil {
		return record.ExecInfo{}, err
	}
	x, of, err := record.DecodeExec(raw)
	if err == nil && of != execID {
		err = record.ErrNoRecord
	}
	if err != nil {
		return record.ExecInfo{}, err
	}
	return x, nil
}

// stable reads what a map keeps of a process until two readings in a row are equal and whole: an
// execve that is at work changes exec_id, the first field, to zero before anything else, so
// equal readings are of one image.
func (s *Sensor) stable(name string, pidfd int) ([]byte, error) {
	var last []byte
	for range 100 {
		raw, err := s.kernel.Maps[name].LookupBytes(uint32(pidfd))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || (err == nil && raw == nil) {
			return nil, record.ErrNoRecord
		}
		if err != nil {
			return nil, fmt.Errorf("looking up %s: %w", name, err)
		}
		atWork := len(raw) >= 8 && binary.NativeEndian.Uint64(raw) == 0
		if !atWork && bytes.Equal(raw, last) {
			return raw, nil
		}
		if atWork {
			time.Sleep(50 * time.Microsecond)
		}
		last = raw
	}
	return nil, errTooFast
}

// Key returns the key of the process that a pidfd names. ErrNoRecord if there is none.
func (s *Sensor) Key(pidfd int) (selectors.ProcessKey, error) {
	t, err := s.Task(pidfd)
	return t.Process, err
}

// self returns the agent's own key; its number in the initial PID namespace comes with it.
func (s *Sensor) self() (selectors.ProcessKey, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return selectors.ProcessKey{}, fmt.Errorf("opening the agent's own pidfd: %w", err)
	}
	defer unix.Close(fd)
	return s.Key(fd)
}

func (s *Sensor) counters() (record.State, error) {
	raw, err := s.kernel.Maps["state"].LookupBytes(uint32(0))
	if err != nil {
		return record.State{}, fmt.Errorf("reading the sensor's state: %w", err)
	}
	return record.DecodeState(raw)
}

// Lost returns how many events and records the kernel could not keep since the maps were
// made. A process whose record was lost has none, so look-ups fail. (On a fully preemptible
// kernel before 6.2 an execve may leave the old record in place: compare Task.Executable
// with the file that the process runs.)
func (s *Sensor) Lost() uint64 {
	c, err := s.counters()
	if err != nil {
		return ^uint64(0)
	}
	return c.EventsLost + c.RecordsLost
}

// Refused returns how often the protection and the gate refused something since the maps were made.
func (s *Sensor) Refused() uint64 {
	c, err := s.counters()
	if err != nil {
		return ^uint64(0)
	}
	return c.Refused
}

// eventInterval is how often the ring buffer is emptied: waking the reader from the kernel
// would make every execve on the host 25 µs slower.
const eventInterval = 100 * time.Millisecond

// Events calls handle for every execve, and for every change of a process that connected to
// the agent, in order, until ctx ends; it returns ctx's error. What happens to a process that
// connected comes at once, the rest within eventInterval.
func (s *Sensor) Events(ctx context.Context, handle func(record.Event)) error {
	r, err := ringbuf.NewReader(s.kernel.Maps["events"])
	if err != nil {
		return fmt.Errorf("opening the events: %w", err)
	}
	defer r.Close()
	var rec ringbuf.Record
	for ctx.Err() == nil {
		r.SetDeadline(time.Now().Add(eventInterval))
		for ctx.Err() == nil {
			err := r.ReadInto(&rec)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("reading events: %w", err)
			}
			e, err := record.DecodeEvent(rec.RawSample, s.bootID)
			if err != nil {
				return err
			}
			handle(e)
		}
	}
	return ctx.Err()
}
