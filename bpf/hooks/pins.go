// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

const (
	mapPrefix  = "map_"
	linkPrefix = "link_"
)

func mapPin(dir, name string) string  { return filepath.Join(dir, mapPrefix+name) }
func linkPin(dir, name string) string { return filepath.Join(dir, linkPrefix+name) }

// optional is the only kind of map that a kernel may lack; it costs the programs that use it.
const optional = ebpf.InodeStorage

// MakeMaps makes all maps that this kernel knows.
func (o *Object) MakeMaps() error {
	only := o.spec.Copy()
	only.Programs = nil
	lacks := features.HaveMapType(optional) != nil
	for name, m := range only.Maps {
		if lacks && m.Type == optional {
			delete(only.Maps, name)
		}
	}
	c, err := ebpf.NewCollection(only)
	if err != nil {
		return refuse(err)
	}
	defer c.Close()
	for name := range only.Maps {
		o.Maps[name] = c.DetachMap(name)
	}
	return nil
}

// PinMaps pins the maps that were made.
func (o *Object) PinMaps() error {
	for name, m := range o.Maps {
		if err := m.Pin(mapPin(o.dir, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	return nil
}

// OpenMaps opens the maps that an earlier process pinned. It is os.ErrNotExist if one is missing.
func (o *Object) OpenMaps() error {
	for name, spec := range o.spec.Maps {
		m, err := ebpf.LoadPinnedMap(mapPin(o.dir, name), nil)
		if spec.Type == optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("opening the pinned map %s: %w", name, err)
		}
		o.Maps[name] = m
	}
	return nil
}

// OpenWalker opens a program that walks, if an earlier process kept it.
func (o *Object) OpenWalker(program string) error {
	l, err := link.LoadPinnedLink(linkPin(o.dir, program), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		o.Links[program] = l
	}
	return err
}

// GiveTo makes a user and group the owner of the folder and of all that is pinned there, nobody else may use it.
func GiveTo(dir string, uid, gid int) error {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("listing the pins: %w", err)
	}
	for _, pin := range pins {
		if err := os.Chown(filepath.Join(dir, pin.Name()), uid, gid); err != nil {
			return fmt.Errorf("giving a pin away: %w", err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return fmt.Errorf("giving the pin directory away: %w", err)
	}
	return nil
}

// Open opens a set that an earlier process attached, all of it or nothing.
func (o *Object) Open(set ...string) error {
	for i, program := range set {
		l, err := link.LoadPinnedLink(linkPin(o.dir, program), nil)
		if err != nil {
			for _, program := range set[:i] {
				err = errors.Join(err, o.Links[program].Close())
				delete(o.Links, program)
			}
			return err
		}
		o.Links[program] = l
	}
	o.Note(On, "", set...)
	return nil
}

// Close closes everything. What is pinned stays and goes on.
func (o *Object) Close() error {
	var errs []error
	for _, l := range o.Links {
		errs = append(errs, l.Close())
	}
	for _, m := range o.Maps {
		errs = append(errs, m.Close())
	}
	clear(o.Links)
	clear(o.Maps)
	o.hooks = nil
	return errors.Join(errs...)
}

// Pinned reports whether an object, or a part of one, is pinned in dir.
func Pinned(dir string) (bool, error) {
	pins, err := os.ReadDir(dir)
	return slices.ContainsFunc(pins, func(pin os.DirEntry) bool { return strings.HasPrefix(pin.Name(), mapPrefix) }), err
}

// Remove removes all pins in dir; without a process that has them open, the programs are detached.
// Links go before maps, so that no program runs over maps nobody can find.
func Remove(dir string) error {
	for _, prefix := range []string{linkPrefix, mapPrefix} {
		pins, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("listing the pins: %w", err)
		}
		for _, pin := range pins {
			if strings.HasPrefix(pin.Name(), prefix) {
				if err := os.Remove(filepath.Join(dir, pin.Name())); err != nil {
					return fmt.Errorf("removing a pin: %w", err)
				}
			}
		}
	}
	return nil
}
