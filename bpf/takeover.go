// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/assay-id/assay/selectors"
)

// takeOver uses the pins of an earlier agent; why tells what speaks against it.
func (s *Sensor) takeOver() (why string, err error) {
	if _, err := os.Stat(mapPin(s.dir, "settings")); errors.Is(err, os.ErrNotExist) {
		return "none are pinned", nil
	}
	for name := range s.spec.Maps {
		m, err := ebpf.LoadPinnedMap(mapPin(s.dir, name), nil)
		if err != nil {
			return "a pinned map is missing", errors.Join(err, s.release())
		}
		s.maps[name] = m
	}
	var set settings
	if err := s.maps["settings"].Lookup(uint32(0), &set); err != nil || set.Build != build() {
		return "the pins were made by another build, or not to the end", errors.Join(err, s.release())
	}
	s.tier = selectors.Tier(set.Tier)
	if err := s.takeOverLinks(); err != nil {
		return "a pinned link is missing", errors.Join(err, s.release())
	}
	if err := s.prove(); err != nil {
		return "the pinned hooks do not work", errors.Join(err, s.release())
	}
	return "", nil
}

func (s *Sensor) takeOverLinks() error {
	for _, name := range slices.Concat(lineagePrograms, tierPrograms[s.tier]) {
		l, err := link.LoadPinnedLink(linkPin(s.dir, name), nil)
		if err != nil {
			return err
		}
		s.links[name] = l
		s.note(name, HookOn, "")
	}
	for _, name := range slices.Concat(threadExecPrograms, []string{spliceProgram}) {
		l, err := link.LoadPinnedLink(linkPin(s.dir, name), nil)
		if err == nil {
			s.links[name] = l
			s.note(name, HookOn, "")
		}
	}
	s.noteTheRest("refused when the sensor was first attached")
	return nil
}

// noteTheRest completes the list of hooks with those that are not attached.
func (s *Sensor) noteTheRest(why string) {
	missing := func(names []string, state HookState, detail string) {
		for _, name := range names {
			if s.links[name] == nil && !s.noted(name) {
				s.note(name, state, detail)
			}
		}
	}
	missing([]string{spliceProgram}, HookUnavailable, why)
	if s.tier == selectors.TierT1 {
		missing(tierPrograms[selectors.TierT2], HookOff, "not needed at tier t1")
	} else {
		missing(tierPrograms[selectors.TierT1], HookUnavailable, why)
	}
	for i, name := range threadExecPrograms {
		other := threadExecPrograms[1-i]
		if s.links[other] != nil {
			missing([]string{name}, HookOff, "not needed beside "+s.section(other))
		} else {
			missing([]string{name}, HookUnavailable, why)
		}
	}
}

func (s *Sensor) noted(name string) bool {
	for _, h := range s.hooks {
		if h.Name == s.section(name) {
			return true
		}
	}
	return false
}
