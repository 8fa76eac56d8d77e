// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

const inodesMap = "inodes"

// inodeMaps are the only maps that a kernel may lack.
var inodeMaps = []string{inodesMap, "guarded"}

// takeOver uses the pins of an earlier agent; why tells what speaks against it.
func (s *Sensor) takeOver() (why string, err error) {
	if _, err := os.Stat(mapPin(s.dir, "settings")); errors.Is(err, os.ErrNotExist) {
		return "none are pinned", nil
	}
	for name := range s.spec.Maps {
		if _, err := os.Stat(mapPin(s.dir, name)); slices.Contains(inodeMaps, name) && errors.Is(err, os.ErrNotExist) {
			continue // this kernel has none
		}
		m, err := ebpf.LoadPinnedMap(mapPin(s.dir, name), nil)
		if err != nil {
			return "a pinned map is missing", errors.Join(err, s.release())
		}
		s.maps[name] = m
	}
	if err := s.answer.open(s.maps["answer"].FD()); err != nil {
		return "the map of answers can not be used", errors.Join(err, s.release())
	}
	var set settings
	if err := s.maps["settings"].Lookup(uint32(0), &set); err != nil || set.Build != build() {
		return "the pins were made by another build, or not to the end", errors.Join(err, s.release())
	}
	s.tier = selectors.Tier(set.Tier)
	s.watched = watched{set.TamperSince, record.Tampering(set.TamperSeen)}
	if c, err := s.counters(); err != nil {
		return "its state can not be read", errors.Join(err, s.release())
	} else {
		s.host = c.Host
	}
	if err := s.takeOverLinks(); err != nil {
		return "a pinned link is missing", errors.Join(err, s.release())
	}
	if err := s.prove(); err != nil {
		return "the pinned hooks do not work", errors.Join(err, s.release())
	}
	return "", nil
}

func (s *Sensor) takeOverLinks() error {
	if err := s.openLinks(lineagePrograms); err != nil {
		return err
	}
	var err error
	for _, d := range doors {
		if d.tier != s.tier {
			continue
		}
		if err = s.openLinks(d.programs); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	for _, name := range threadExecPrograms {
		_ = s.openLinks([]string{name}) // optional
	}
	for _, f := range features {
		if err := s.takeOverFeature(f); err != nil {
			return err
		}
	}
	s.noteTheRest("refused when the sensor was first attached")
	return nil
}

// takeOverFeature opens what is pinned of a feature, and follows the configuration in what is optional.
func (s *Sensor) takeOverFeature(f feature) error {
	for _, set := range f.sets {
		if s.openLinks(set) != nil {
			continue
		}
		if s.wants(f) {
			return nil
		}
		for _, name := range set {
			s.note(name, HookOff, unwanted)
		}
		return s.detach(set)
	}
	if f.optIn != nil && s.wants(f) {
		s.attachFeature(f)
	}
	return nil
}

// unwanted is why an optional hook is off.
const unwanted = "not wanted by the configuration"

// openLinks opens all of the named pins or none.
func (s *Sensor) openLinks(names []string) error {
	for i, name := range names {
		l, err := link.LoadPinnedLink(linkPin(s.dir, name), nil)
		if err != nil {
			for _, name := range names[:i] {
				s.links[name].Close()
				delete(s.links, name)
			}
			return err
		}
		s.links[name] = l
	}
	for _, name := range names {
		s.note(name, HookOn, "")
	}
	return nil
}

// noteTheRest completes the list of hooks with those that are not attached: what comes
// behind a set that works is not needed, what comes before it was refused.
func (s *Sensor) noteTheRest(why string) {
	var sets [][]string
	for _, d := range doors {
		sets = append(sets, d.programs)
	}
	s.noteSets(sets, why)
	s.noteSets([][]string{threadExecPrograms[:1], threadExecPrograms[1:]}, why)
	for _, f := range features {
		if s.wants(f) {
			s.noteSets(f.sets, why)
			continue
		}
		off := "not needed at tier " + s.tier.String()
		if f.optIn != nil {
			off = unwanted
		}
		for _, set := range f.sets {
			s.noteMissing(set, HookOff, off)
		}
	}
}

func (s *Sensor) noteSets(sets [][]string, why string) {
	var works string
	for _, set := range sets {
		switch {
		case s.links[set[0]] != nil:
			works = s.section(set[0])
		case works != "":
			s.noteMissing(set, HookOff, "not needed beside "+works)
		default:
			s.noteMissing(set, HookUnavailable, why)
		}
	}
}

func (s *Sensor) noteMissing(names []string, state HookState, detail string) {
	for _, name := range names {
		if s.links[name] == nil && !s.noted(name) {
			s.note(name, state, detail)
		}
	}
}

func (s *Sensor) noted(name string) bool {
	return slices.ContainsFunc(s.hooks, func(h Hook) bool { return h.Program == name })
}
