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
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/bpf/record"
)

// Config says where to listen and what to do with who comes.
type Config struct {
	// Path of the socket's file.
	Path string
	// Mode are the file's permissions.
	Mode fs.FileMode
	// Owner of the file; nil leaves it to the agent's own user and group.
	Owner *Owner
	// Inherited is a socket that listens at Path already (systemd.socket(5)); Listen closes it. Mode and Owner are its
	// maker's affair then.
	Inherited *os.File
	Binder    Binder
	// Connections bounds how many are open; nil is no bound.
	Connections *limits.Count
	Logger      *slog.Logger
}

// Owner of a file; -1 leaves one of them as it is.
type Owner struct{ UID, GID int }

// Listener listens on one of the agent's Unix sockets; its connections are *Conn.
type Listener struct {
	unix    *net.UnixListener
	cfg     Config
	callers callers
	crowded rate.Sometimes
}

// Listen makes the socket, or takes the one that was inherited. A socket file that nobody listens on is removed first; one
// with a listener is an error.
func Listen(ctx context.Context, c Config) (*Listener, error) {
	listen := listenNew
	if c.Inherited != nil {
		listen = listenInherited
	}
	l, err := listen(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Listener{unix: l, cfg: c, crowded: rate.Sometimes{Interval: 10 * time.Second}}, nil
}

func listenNew(ctx context.Context, c Config) (*net.UnixListener, error) {
	if err := removeStale(c.Path); err != nil {
		return nil, err
	}
	first := c.Mode
	if c.Owner != nil {
		first = 0 // nobody may connect before it has its owner
	}
	config := net.ListenConfig{Control: func(_, path string, raw syscall.RawConn) error {
		return prepare(raw, path, first, c.Binder)
	}}
	l, err := config.Listen(ctx, "unix", c.Path)
	if err != nil {
		return nil, fmt.Errorf("listening on the agent's socket: %w", err)
	}
	if c.Owner != nil {
		if err := os.Chown(c.Path, c.Owner.UID, c.Owner.GID); err != nil {
			return nil, errors.Join(fmt.Errorf("giving the agent's socket its owner: %w; let systemd make the socket (docs/sockets.md), or leave user and group out", err), l.Close())
		}
	}
	if err := os.Chmod(c.Path, c.Mode.Perm()); err != nil { // the umask may have taken bits
		return nil, errors.Join(fmt.Errorf("setting the permissions of the agent's socket: %w", err), l.Close())
	}
	return l.(*net.UnixListener), nil
}

// prepare runs before bind, so that no connection comes before it: the file never has more
// permissions than asked for, messages carry their senders, the sensor watches.
func prepare(raw syscall.RawConn, path string, mode fs.FileMode, b Binder) error {
	var err error
	errControl := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.Fchmod(int(fd), uint32(mode.Perm())), watch(int(fd), path, b))
	})
	return errors.Join(errControl, err)
}

func watch(fd int, path string, b Binder) error {
	return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1), b.Watch(fd, path))
}

// listenInherited takes over a socket. Who connected before the sensor watched it, as a rule before its first start, has
// no record and is refused.
func listenInherited(_ context.Context, c Config) (*net.UnixListener, error) {
	defer c.Inherited.Close()
	if err := watch(int(c.Inherited.Fd()), c.Path, c.Binder); err != nil {
		return nil, fmt.Errorf("taking over the socket %s: %w", c.Path, err)
	}
	l, err := net.FileListener(c.Inherited) // a duplicate
	if err != nil {
		return nil, fmt.Errorf("taking over the socket %s: %w", c.Path, err)
	}
	return l.(*net.UnixListener), nil
}

// PathOf returns where an inherited socket listens. Its error says why it can not be one of the agent's.
func PathOf(f *os.File) (string, error) {
	fd := int(f.Fd())
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", fmt.Errorf("%s, which systemd passed, is no socket: %w", f.Name(), err)
	}
	at, ok := name.(*unix.SockaddrUnix)
	if !ok {
		return "", fmt.Errorf("%s, which systemd passed, is a network socket, whose callers the kernel does not name: write a path after ListenStream=", f.Name())
	}
	kind, errKind := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, errListens := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case errors.Join(errKind, errListens) != nil:
		return "", errors.Join(errKind, errListens)
	case kind != unix.SOCK_STREAM || listens != 1:
		return "", fmt.Errorf("%s at %s, which systemd passed, does not listen for streams: use ListenStream= and Accept=no", f.Name(), at.Name)
	case at.Name == "" || at.Name[0] == '@':
		return "", fmt.Errorf("%s, which systemd passed, is the abstract socket %q: %w", f.Name(), at.Name, ErrAbstract)
	}
	return at.Name, nil
}

// ErrAbstract: an abstract name is no file.
var ErrAbstract = errors.New("an abstract name has no permissions, anybody can take it, and at tier t2 the kernel's record is by the name of a file: write an absolute path")

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

// Accept returns the next connection, a *Conn whose caller is pinned or refused. One beyond the limits is closed: to hold
// it for an answer is what there is no room for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		conn, err := newConn(c, &l.cfg, &l.callers)
		if err != nil {
			l.crowded.Do(func() {
				l.cfg.Logger.Warn("workload connection closed: there is no room for it", "uid", conn.who.UID, "cgroup", conn.who.Cgroup, "reason", err)
			})
			continue
		}
		if _, err := conn.Caller(); err != nil {
			l.cfg.Logger.Warn("workload connection refused", "error", err)
		}
		return conn, nil
	}
}

// Notify tells the connections of a process that something happened to it (bpf.Sensor.Events).
func (l *Listener) Notify(e record.Event) { l.callers.notify(e.Process) }

// Close stops listening and removes the socket file, unless that was inherited. Open connections stay.
func (l *Listener) Close() error { return l.unix.Close() }

// Addr returns the socket's address.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }
