// SPDX-License-Identifier: Apache-2.0

// Package caller answers who holds the other end of the agent's socket, and whether it is
// still them.
//
//	connect ──▶ kernel record on the socket ──▶ Accept: process pinned ──▶ *Caller or *Refusal
//	(T3: ──▶ the socket's pidfd, Peers)
//	each message read: its sender, stamped by the kernel, is the recorded process
//	Caller.Check, at each request and before each push: same process, same image, sole holder
//
// A connection that is refused is not dropped: it can be read, so that its handler can say
// why. The agent must see the initial PID namespace, and so must the numbers that the kernel
// stamps on messages; elsewhere every caller is refused.
//
// What Check can not see: bytes that are pushed already and not read yet when the owner then
// passes its socket on, and an owner that relays them on purpose.
package caller

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Binder is the kernel's side: bpf.Sensor, or Peers where no program can be loaded.
type Binder interface {
	Watch(listenFD int, path string) error
	Binding(connFD int) (record.Binding, error)
	Task(pidfd int) (record.Task, error)
	process.Tasks
}

// Caller is the process that connected, pinned. Its methods may be called from several
// goroutines.
type Caller struct {
	binding record.Binding // as it was at accept
	process *process.Process
	conn    *Conn
	changed atomic.Pointer[chan struct{}]

	mu sync.Mutex // questions about one socket must not overlap
}

// Key names the process and the image it ran when it connected.
func (c *Caller) Key() selectors.ProcessKey { return c.binding.Task.Process }

// Tier is the tier of the record that names this caller.
func (c *Caller) Tier() selectors.Tier { return c.binding.Tier }

// Task is the kernel's record of the caller, copied when it connected.
func (c *Caller) Task() record.Task { return c.binding.Task }

// Credentials are the caller's at connect.
func (c *Caller) Credentials() record.Credentials { return c.binding.Credentials }

// Now returns the kernel's record of the caller as it is now, with its integrity.
func (c *Caller) Now() (task record.Task, err error) {
	err = c.process.Ask(func(pidfd int) error {
		task, err = c.conn.binder.Task(pidfd)
		return err
	})
	return task, err
}

// CgroupID is the cgroup v2 id at connect.
func (c *Caller) CgroupID() uint64 { return c.binding.CgroupID }

// Process is the caller, pinned; it is closed with the connection.
func (c *Caller) Process() *process.Process { return c.process }

// Done returns a channel that is closed when the process has exited or the connection is closed.
func (c *Caller) Done() <-chan struct{} { return c.process.Done() }

// Changed returns a channel that is closed at the next report of the kernel that something
// happened to the process which may end its being served: call Check then. Take it before the
// Check that it is to follow. It is fed by Listener.Notify.
func (c *Caller) Changed() <-chan struct{} { return *c.changed.Load() }

// change closes the channel for everybody who waits, and puts a new one in its place.
func (c *Caller) change() {
	next := make(chan struct{})
	close(*c.changed.Swap(&next))
}

// A child between fork and execve holds its parent's sockets, and a system call at work holds
// a reference, too, close(2) and exit(2) among them. All pass within microseconds, but on a busy machine such a child can wait
// for a CPU for tens of milliseconds: twelve questions, 100 ms at most, 50 µs after the first.
const (
	tries    = 12
	interval = 50 * time.Microsecond // doubled after each
)

// Check returns nil if the caller is still the process and image that connected, with the same
// credentials in the same cgroup, not tampered with since, and nobody else holds its end of the
// connection; else a *Refusal. Call it at each request and before each push. One system call at T2, three or
// more at the others.
func (c *Caller) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := 1; ; n++ {
		b, err := c.conn.ask()
		switch {
		case c.conn.refusal.Load() != nil:
			return c.conn.refusal.Load()
		case errors.Is(err, net.ErrClosed):
			return refuse(Closed, "%v", err)
		case errors.Is(err, process.ErrGone): // T3
			return refuse(Gone, "process %d has exited", c.Key().TGID)
		case err != nil:
			return refuse(NoBinding, "%v", err)
		}
		b.Credentials, b.CgroupID = c.binding.Credentials, c.binding.CgroupID // T3 has them from now
		r, passing := judge(b, c.Key())
		if r != nil && passing && (n == walkAt || n == tries) && unexplained(b, c.Key()) && c.blocked() {
			r = nil
		}
		if r != nil && passing && n < tries {
			time.Sleep(interval << (n - 1))
			continue
		}
		switch {
		case r != nil:
			return r
		case b.Tier != selectors.TierT2:
			return c.still()
		}
		return c.unharmed(b.Holder.Done)
	}
}

// still judges the process's own record, where the answer about its connection does not hold that: the
// same image, and nothing was done to it since it connected.
func (c *Caller) still() error {
	now, err := c.Now()
	exited, errExited := c.process.Exited() // after the look-up: a reaped process has no record
	switch {
	case errors.Is(err, record.ErrNoRecord), exited:
		return refuse(Gone, "process %d has exited", c.Key().TGID)
	case errors.Join(err, errExited) != nil:
		return refuse(Closed, "%v", errors.Join(err, errExited))
	case now.Process != c.Key(): // it is pinned, so this is no other process
		return refuse(Executed, "process %d has executed another program", c.Key().TGID)
	}
	return c.unharmed(now.Integrity)
}

// unharmed judges what was done to the process since it connected.
func (c *Caller) unharmed(now record.Integrity) error {
	if fresh := now.Seen &^ c.binding.Task.Integrity.Seen; fresh != 0 {
		return refuse(Tampered, "process %d did %v to process %d", now.ByTGID, fresh, c.Key().TGID)
	}
	return nil
}

// judge reads a binding as the answer to "is key the sole holder of the other end?"; passing
// says that a refusal may be over in a moment.
func judge(b record.Binding, key selectors.ProcessKey) (r *Refusal, passing bool) {
	if b.Task.Process != key && processOf(b.Task.Process) == processOf(key) { // T3
		return refuse(Executed, "process %d has executed another program", key.TGID), false
	}
	if b.Task.Process != key {
		return refuse(Replaced, "the connection is bound to process %d now", b.Task.Process.TGID), false
	}
	if b.Shared || b.PeerDiffers {
		return refuse(SharedSocket, "another process tried to connect the same socket"), false
	}
	if b.Handed != 0 && b.HandedTGID == key.TGID && b.HandedExecID != key.ExecID {
		return refuse(Executed, "process %d has executed another program", key.TGID), false
	}
	if b.Handed != 0 {
		return refuse(HandedOver, "process %d used or received the caller's socket", b.HandedTGID), false
	}
	if r := judgeNow(b); r != nil {
		return r, false
	}
	if b.Tier != selectors.TierT2 {
		return nil, false // T1 marks other users in the kernel
	}
	h := b.Holder
	switch {
	case h.Closed:
		return refuse(Closed, "nobody has the caller's socket open"), false
	case !h.Alive:
		return refuse(Gone, "process %d has exited", key.TGID), false
	case h.ExecID != key.ExecID:
		return refuse(Executed, "process %d has executed another program", key.TGID), false
	case h.InFlight:
		return refuse(HandedOver, "the caller's socket is being passed to another process"), false
	case h.Held == 0:
		return refuse(HandedOver, "process %d has let go of its socket, another process holds it", key.TGID), true // or it is closing it
	case h.Tables != h.Threads:
		return refuse(HandedOver, "process %d shares its descriptors with another process", key.TGID), true
	case h.References != h.Held:
		return refuse(HandedOver, "another process holds the caller's socket, or an io_uring may"), true
	}
	return nil, false
}

// judgeNow compares how the process is with how it was when it connected. Unknown is not judged:
// the facts are of the moment of the connect.
func judgeNow(b record.Binding) *Refusal {
	if !b.Now.Known {
		return nil
	}
	if b.Now.CgroupID != b.CgroupID {
		return refuse(MovedCgroup, "process %d moved from cgroup %d to %d", b.Task.Process.TGID, b.CgroupID, b.Now.CgroupID)
	}
	if was, is := b.Credentials, b.Now.Credentials; !SameRights(was, is) {
		return refuse(CredentialsChanged, "process %d had %+v, has %+v", b.Task.Process.TGID, was, is)
	}
	return nil
}

// SameRights compares how a process was with how it is. Seccomp and no_new_privs can only tighten and are not compared.
func SameRights(was, is record.Credentials) bool {
	is.Seccomp, is.NoNewPrivs = was.Seccomp, was.NoNewPrivs
	return was == is
}
