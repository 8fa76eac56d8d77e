// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

// Listener listens on the agent's Unix socket; its connections are *Conn.
type Listener struct {
	unix    *net.UnixListener
	binder  Binder
	log     *slog.Logger
	callers callers
}

// Listen makes the socket at path with the given permissions. A socket file that nobody
// listens on is removed first; one with a listener is an error.
func Listen(ctx context.Context, path string, mode fs.FileMode, b Binder, log *slog.Logger) (*Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, path string, raw syscall.RawConn) error {
		return prepare(raw, path, mode, b)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on the agent's socket: %w", err)
	}
	if err := os.Chmod(path, mode.Perm()); err != nil { // the umask may have taken bits
		return nil, errors.Join(fmt.Errorf("setting the permissions of the agent's socket: %w", err), l.Close())
	}
	return &Listener{unix: l.(*net.UnixListener), binder: b, log: log}, nil
}

// prepare runs before bind, so that no connection comes before it: the file never has more
// permissions than asked for, messages carry their senders, the sensor watches.
func prepare(raw syscall.RawConn, path string, mode fs.FileMode, b Binder) error {
	var err error
	errControl := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.Fchmod(int(fd), uint32(mode.Perm())),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1),
			b.Watch(int(fd), path))
	})
	return errors.Join(errControl, err)
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking at the agent's socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket: remove it, or set another socket path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("another process listens on %s (a second agent on the same socket): stop it first, or set another socket path", path)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the socket of an agent that ended: %w", err)
		}
		return nil
	}
	return fmt.Errorf("finding out whether another agent listens on %s: %w", path, err)
}

// Accept returns the next connection, a *Conn whose caller is pinned or refused.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.unix.AcceptUnix()
	if err != nil {
		return nil, err
	}
	conn := newConn(c, l.binder, &l.callers, l.log)
	if _, err := conn.Caller(); err != nil {
		l.log.Warn("workload connection refused", "error", err)
	}
	return conn, nil
}

// Notify tells the connections of a process that something happened to it (bpf.Sensor.Events).
func (l *Listener) Notify(e record.Event) { l.callers.notify(e.Process) }

// Close stops listening and removes the socket file. Open connections stay.
func (l *Listener) Close() error { return l.unix.Close() }

// Addr returns the socket's address.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }
