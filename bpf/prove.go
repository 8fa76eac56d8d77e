// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/assay-id/assay/bpf/record"
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
	var set record.Settings
	if err := s.kernel.Maps["settings"].Lookup(uint32(0), &set); err != nil {
		return fmt.Errorf("reading the sensor's settings: %w", err)
	}
	names := s.names
	s.names = append(slices.Clone(names[:min(len(names), record.SocketNames-1)]), proofName) // connects go on meanwhile
	err = s.writeSettings(set.Build)
	s.names = names
	if err != nil {
		return err
	}
	b, err := s.connectToSelf()
	if err != nil {
		return err
	}
	if b.Task.Process != me || b.Shared || b.PeerDiffers {
		return errors.New("the record of a connection is not that of its caller")
	}
	return s.writeSettings(set.Build)
}

// connectToSelf returns the record of a connection of this process to itself.
func (s *Sensor) connectToSelf() (b record.Binding, err error) {
	dir, err := os.MkdirTemp("", "assay-sensor-")
	if err != nil {
		return b, err
	}
	defer os.RemoveAll(dir)
	watched := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, s.watchSocket)
	}}
	listener, err := watched.Listen(context.Background(), "unix", filepath.Join(dir, proofName))
	if err != nil {
		return b, err
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		return b, err
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		return b, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return b, err
	}
	err = control(raw, func(fd int) (err error) {
		b, err = s.Binding(fd)
		return err
	})
	return b, err
}

// control calls f with a socket's descriptor.
func control(c syscall.RawConn, f func(fd int) error) (err error) {
	refused := c.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(refused, err)
}
