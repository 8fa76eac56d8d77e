// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// proofName is the last component of the path of the socket that proves the hooks.
const proofName = "proof"

// prove connects to a socket of its own and demands the kernel's record of that: a hook can
// load and attach and still never run (an LSM that is not in the lsm= list).
func (s *Sensor) prove() error {
	me, err := s.self()
	if err != nil {
		return fmt.Errorf("finding the agent's own record: %w", err)
	}
	var set settings
	if err := s.kernel.Maps["settings"].Lookup(uint32(0), &set); err != nil {
		return fmt.Errorf("reading the sensor's settings: %w", err)
	}
	names := s.names
	s.names = []string{proofName}
	err = s.writeSettings(set.Build)
	s.names = names
	if err != nil {
		return err
	}
	conn, closeAll, err := s.connectToSelf()
	defer closeAll()
	if err != nil {
		return fmt.Errorf("connecting to itself: %w", err)
	}
	b, err := s.Binding(conn)
	if err != nil {
		return err
	}
	if b.Task.Process != me || b.Shared || b.PeerDiffers {
		return errors.New("the record of a connection is not that of its caller")
	}
	return s.writeSettings(set.Build)
}

// connectToSelf returns an accepted socket whose other end is this process's, too.
func (s *Sensor) connectToSelf() (conn int, closeAll func(), err error) {
	var open []int
	closeAll = func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}
	socket := func() (int, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			open = append(open, fd)
		}
		return fd, err
	}
	listener, err := socket()
	if err != nil {
		return -1, closeAll, err
	}
	client, err := socket()
	if err != nil {
		return -1, closeAll, err
	}
	dir, err := os.MkdirTemp("", "assay-sensor-")
	if err != nil {
		return -1, closeAll, err
	}
	defer os.RemoveAll(dir)
	name := &unix.SockaddrUnix{Name: filepath.Join(dir, proofName)}
	if err := errors.Join(s.watchSocket(listener), unix.Bind(listener, name), unix.Listen(listener, 1)); err != nil {
		return -1, closeAll, err
	}
	if err := unix.Connect(client, name); err != nil {
		return -1, closeAll, err
	}
	conn, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err == nil {
		open = append(open, conn)
	}
	return conn, closeAll, err
}
