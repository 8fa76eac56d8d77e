// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

// watched is a part of sensor_settings: see wire.h.
type watched struct {
	since uint64 // exec id
	kinds record.Tampering
}

// watchName has connects to a socket of this name recorded (T2).
func (s *Sensor) watchName(name string) error {
	if slices.Contains(s.names, name) {
		return nil
	}
	if err := checkNames(append(s.names, name)); err != nil {
		return err
	}
	s.names = append(s.names, name)
	return nil
}

func checkNames(names []string) error {
	if len(names) > record.SocketNames {
		return fmt.Errorf("there are more than %d names of sockets to watch", record.SocketNames)
	}
	for _, name := range names {
		if name == "" || name == "." || name == ".." || len(name) > record.NameMax || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("%q is no name of a socket's file: write the last component of its path", name)
		}
	}
	return nil
}

// build names the object file: pins that another object made are not used.
func build() uint64 {
	sum := sha256.Sum256(_SensorBytes)
	return binary.NativeEndian.Uint64(sum[:]) | 1
}

// noteWatched notes from which image on the hooks see tampering, and which.
func (s *Sensor) noteWatched() error {
	c, err := s.counters()
	if err != nil {
		return err
	}
	s.host = c.Host
	for i, set := range features[0].sets {
		if !s.kernel.On(set[0]) {
			continue
		}
		s.watched = watched{c.NextExecID, record.AllTampering}
		if i == len(features[0].sets)-1 {
			s.watched.kinds = record.MemoryWritten
		}
	}
	return nil
}

func (s *Sensor) writeSettings(build uint64) error {
	me, err := s.self()
	if err != nil {
		return err
	}
	set := record.Settings{Build: build, TamperSince: s.watched.since, AgentTGID: me.TGID, Tier: uint32(s.tier), TamperSeen: uint32(s.watched.kinds), Answer: s.answer.address()}
	for i, name := range s.names {
		set.Names[i].Length = uint32(copy(set.Names[i].Text[:], "/"+name))
	}
	if s.protects() {
		var st unix.Stat_t
		if err := unix.Stat(s.dir, &st); err != nil {
			return fmt.Errorf("looking at the pin directory: %w", err)
		}
		set.Protected, set.PinDev = me.ExecID, kernelDevice(st.Dev)
	}
	if err := s.kernel.Maps["settings"].Put(uint32(0), set); err != nil {
		return fmt.Errorf("writing the sensor's settings: %w", err)
	}
	return nil
}

// kernelDevice is the kernel's own encoding of a device.
func kernelDevice(dev uint64) uint32 { return unix.Major(dev)<<20 | unix.Minor(dev) }
