// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Conn is an accepted connection and its caller. Reads return only bytes that the caller's
// process sent; bytes of another process end the connection.
type Conn struct {
	*net.UnixConn
	raw    syscall.RawConn
	binder Binder
	log    *slog.Logger

	who     limits.Caller
	caller  *Caller                 // nil if refused at accept
	refusal atomic.Pointer[Refusal] // final
	// stamped: the socket took SO_PASSCRED from its listener (6.16), so every message has its
	// sender. Before, bytes sent between accept and setsockopt say 0.
	stamped bool
	closing sync.Once
	callers *callers
	places  *limits.Count // where it holds a place; nil is none
	control oob           // of Read, for one goroutine

	writeTimeout time.Duration
}

// oob has room for the one control message that is wanted: a sender.
type oob [32]byte

// newConn binds the connection to who connected. Its error is that it has no place among the connections; it is closed then.
func newConn(c *net.UnixConn, cfg *Config, callers *callers) (*Conn, error) {
	conn := &Conn{UnixConn: c, binder: cfg.Binder, callers: callers, log: cfg.Logger, writeTimeout: writeTimeout}
	var err error
	if conn.raw, err = c.SyscallConn(); err != nil {
		return conn, errors.Join(err, c.Close())
	}
	r := conn.bind()
	if r != nil {
		conn.refusal.Store(r)
		conn.who = limits.Caller{UID: conn.peerUID()}
	} else {
		b := &conn.caller.binding
		conn.who = limits.Caller{UID: b.Credentials.UID, Cgroup: b.CgroupID}
		callers.add(conn.caller)
	}
	if cfg.Connections == nil {
		return conn, nil
	}
	if err := cfg.Connections.Enter(conn.who); err != nil {
		return conn, errors.Join(err, conn.Close())
	}
	conn.places = cfg.Connections
	return conn, nil
}

// peerUID is who connected as SO_PEERCRED says, where there is no record; a number that no user has if that is unknown, too.
func (c *Conn) peerUID() (uid uint32) {
	uid = ^uint32(0)
	_ = c.withFD(func(fd int) {
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = cred.Uid
		}
	})
	return uid
}

// bind reads who connected and pins that process.
func (c *Conn) bind() *Refusal {
	binding, err := c.ask()
	switch {
	case errors.Is(err, process.ErrGone): // T3
		return refuse(Gone, "%v", err)
	case err != nil:
		return refuse(NoBinding, "%v", err)
	}
	if binding.Shared || binding.PeerDiffers {
		return refuse(SharedSocket, "several processes tried to connect the socket")
	}
	if err := c.wantSenders(); err != nil {
		return refuse(Closed, "asking for the senders of messages: %v", err)
	}
	p, err := process.Pin(c.binder, binding.Task.Process)
	switch {
	case errors.Is(err, process.ErrGone):
		return refuse(Gone, "%v", err)
	case errors.Is(err, process.ErrReplaced):
		return refuse(Replaced, "%v", err)
	case err != nil:
		return refuse(NoBinding, "%v", err)
	}
	c.caller = &Caller{binding: binding, process: p, conn: c}
	waiting := make(chan struct{})
	c.caller.changed.Store(&waiting)
	return nil
}

func (c *Conn) ask() (b record.Binding, err error) {
	errControl := c.withFD(func(fd int) { b, err = c.binder.Binding(fd) })
	return b, errors.Join(errControl, err)
}

func (c *Conn) wantSenders() (err error) {
	errControl := c.withFD(func(fd int) {
		var on int
		if on, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED); err != nil {
			return
		}
		if c.stamped = on == 1; !c.stamped {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		}
		if err == nil { // what a caller who does not read can have the kernel hold
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
	return errors.Join(errControl, err)
}

func (c *Conn) withFD(f func(fd int)) error {
	return c.raw.Control(func(fd uintptr) { f(int(fd)) })
}

// Caller returns who connected, or the *Refusal.
func (c *Conn) Caller() (*Caller, error) {
	if r := c.refusal.Load(); r != nil {
		return nil, r
	}
	return c.caller, nil
}

// Read reads bytes of the recorded process. Bytes of another process are not returned: they
// end the connection with a *Refusal. On a connection refused at accept it reads anything,
// so that the refusal can be told.
//
// A message with descriptors does not leave them here: there is no room for their control
// message, so the kernel does not install them (unix(7), MSG_CTRUNC).
func (c *Conn) Read(p []byte) (int, error) {
	if c.caller == nil || len(p) == 0 {
		return c.UnixConn.Read(p)
	}
	if r := c.refusal.Load(); r != nil {
		return 0, r
	}
	n, oobn, _, _, err := c.ReadMsgUnix(p, c.control[:unix.CmsgSpace(unix.SizeofUcred)])
	switch {
	case errors.Is(err, io.EOF):
		return 0, io.EOF // ReadMsgUnix wraps it
	case err != nil:
		return max(n, 0), err // -1 after a failed recvmsg
	}
	if r := judgeSender(c.control[:oobn], c.caller.Key().TGID, c.stamped); r != nil {
		clear(p[:n])
		c.refusal.Store(r)
		c.log.Warn("workload connection closed", "error", r)
		return 0, errors.Join(r, c.Close())
	}
	return n, nil
}

const (
	// sendBuffer in bytes, which the kernel doubles for its own bookkeeping.
	sendBuffer = 32 << 10
	// writeTimeout is how long a caller may leave that full.
	writeTimeout = 30 * time.Second
)

// Write writes. A caller who does not read for 30 s loses the connection, so that what is meant for him is not held for ever.
func (c *Conn) Write(p []byte) (int, error) {
	n, full, err := c.writeNow(p)
	if err != nil || !full {
		return n, err
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.writeTimeout)); err != nil {
		return n, err
	}
	more, err := c.UnixConn.Write(p[n:])
	return n + more, err
}

// writeNow writes what there is room for, which is nearly always all; full says that it was not. That spares a timer.
func (c *Conn) writeNow(p []byte) (n int, full bool, err error) {
	var errWrite error
	errControl := c.withFD(func(fd int) {
		for {
			n, errWrite = unix.Write(fd, p) // Go's sockets do not block
			if !errors.Is(errWrite, unix.EINTR) {
				return
			}
		}
	})
	switch {
	case errControl != nil:
		return 0, false, errControl
	case errors.Is(errWrite, unix.EAGAIN):
		return 0, true, nil
	case errWrite != nil:
		return 0, false, os.NewSyscallError("write", errWrite)
	}
	return n, n < len(p), nil
}

// judgeSender compares the sender that the kernel stamped on a message with the owner.
func judgeSender(oob []byte, owner uint32, stamped bool) *Refusal {
	sender, ok := parseSender(oob)
	switch {
	case ok && sender == int32(owner):
		return nil
	case (!ok || sender == 0) && !stamped:
		return nil // sent before the socket was asked to stamp; Check still applies
	case !ok || sender == 0:
		return refuse(HandedOver, "a message without a known sender came over the connection of process %d", owner)
	}
	return refuse(HandedOver, "process %d sent over the connection of process %d", sender, owner)
}

// parseSender returns the process number in the SCM_CREDENTIALS of a control message.
func parseSender(oob []byte) (pid int32, ok bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0, false
		}
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_CREDENTIALS && len(data) >= unix.SizeofUcred {
			cred, err := unix.ParseUnixCredentials(&unix.SocketControlMessage{Header: header, Data: data})
			return credPID(cred), err == nil
		}
		oob = rest
	}
	return 0, false
}

func credPID(c *unix.Ucred) int32 {
	if c == nil {
		return 0
	}
	return c.Pid
}

// Close closes the connection and lets its process go.
func (c *Conn) Close() error {
	c.closing.Do(func() {
		c.reportForeignUse()
		if c.places != nil {
			c.places.Leave(c.who)
		}
	})
	err := c.UnixConn.Close()
	if c.caller != nil {
		c.callers.remove(c.caller)
		_ = c.caller.process.Close() // a second Close is no news
	}
	return err
}

// reportForeignUse tells of what the kernel refused on the client's side (T1), which no
// message shows.
func (c *Conn) reportForeignUse() {
	if c.caller == nil || c.refusal.Load() != nil || c.caller.Tier() != selectors.TierT1 {
		return
	}
	b, err := c.ask()
	if err != nil || b.Handed == 0 {
		return
	}
	r, _ := judge(b, c.caller.Key())
	c.log.Warn("workload connection closed", "error", r)
}
