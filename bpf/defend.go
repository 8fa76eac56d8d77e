// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// What the kernel is to refuse for the agent: see gate.bpf.h and protect.bpf.h.

// Kinds of the sensor's own objects; see wire.h.
const (
	ownMap uint64 = iota + 1
	ownProgram
	ownLink
)

const (
	cgroupPathSize = 256
	maxDoors       = 64
)

// checkCgroupPaths finds paths that no cgroup can have.
func checkCgroupPaths(paths []string) error {
	if len(paths) > maxDoors {
		return fmt.Errorf("there are %d cgroups, %d at most can be listed: list one above them", len(paths), maxDoors)
	}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || len(p) > cgroupPathSize-2 {
			return fmt.Errorf("%q is no path of a cgroup: write it as in /proc/PID/cgroup behind \"0::\", for example /system.slice", p)
		}
	}
	return nil
}

// protects reports whether the protection's hooks are attached, all of them or none.
func (s *Sensor) protects() bool { return s.kernel.On(protectSets[0][0]) }

// defend tells the gate and the protection what the configuration wants of them.
func (s *Sensor) defend() error {
	if s.kernel.On("on_gate") {
		if err := s.setGate(); err != nil {
			return fmt.Errorf("setting the gate: %w", err)
		}
	}
	if s.protects() {
		if err := errors.Join(s.listOwn(), s.guard(s.dir), s.guard(s.config.DataDir)); err != nil {
			return fmt.Errorf("protecting the agent: %w", err)
		}
	}
	return nil
}

// setGate writes the list first, for cgroups that are made from now on, then finds those that
// are there.
func (s *Sensor) setGate() error {
	listed, admitted := s.kernel.Maps["doors"], s.kernel.Maps["admitted"]
	if err := errors.Join(empty[[cgroupPathSize]byte](listed), empty[uint64](admitted)); err != nil {
		return err
	}
	for _, p := range s.config.ConnectFrom {
		var key [cgroupPathSize]byte
		copy(key[:], p)
		if err := listed.Put(key, uint32(1)); err != nil {
			return err
		}
		id, err := s.cgroup.ID(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = admitted.Put(id, uint32(1))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// empty removes all elements of a map.
func empty[K any](m *ebpf.Map) error {
	var key K
	for {
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
}

// listOwn lists the objects that nobody else may get hold of.
func (s *Sensor) listOwn() error {
	own := s.kernel.Maps["own"]
	if err := empty[uint64](own); err != nil {
		return err
	}
	ids, err := s.kernel.IDs()
	if err != nil {
		return err
	}
	for kind, numbers := range map[uint64][]uint32{ownMap: ids.Maps, ownProgram: ids.Programs, ownLink: ids.Links} {
		for _, id := range numbers {
			if err := own.Put(kind<<32|uint64(id), uint32(1)); err != nil {
				return fmt.Errorf("listing the sensor's own objects: %w", err)
			}
		}
	}
	return nil
}

// guard marks a folder and those below it as the agent's. The mark is lost when the kernel
// forgets the inode, so each is held open.
func (s *Sensor) guard(root string) error {
	if root == "" {
		return nil
	}
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() { // files are reached by way of their folder
			return err
		}
		dir, err := os.Open(name)
		if err != nil {
			return err
		}
		s.guarded = append(s.guarded, dir)
		if err := s.kernel.Maps["guarded"].Put(uint32(dir.Fd()), uint32(1)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}
