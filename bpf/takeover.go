// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// takeOver uses the pins of an earlier agent; why tells what speaks against it.
func (s *Sensor) takeOver() (why string, err error) {
	if why, err = s.takeOverPins(); why != "" {
		err = errors.Join(err, s.kernel.Close())
	}
	return why, err
}

func (s *Sensor) takeOverPins() (why string, err error) {
	if err := s.kernel.OpenMaps(); err != nil {
		return "a pinned map is missing", err
	}
	if err := s.answer.open(s.kernel.Maps["answer"].FD()); err != nil {
		return "the map of answers can not be used", err
	}
	var set record.Settings
	if err := s.kernel.Maps["settings"].Lookup(uint32(0), &set); err != nil || set.Build != build() {
		return "the pins were made by another build, or not to the end", err
	}
	s.tier = selectors.Tier(set.Tier)
	s.watched = watched{set.TamperSince, record.Tampering(set.TamperSeen)}
	c, err := s.counters()
	if err != nil {
		return "its state can not be read", err
	}
	s.host = c.Host
	if err := s.takeOverHooks(); err != nil {
		return "a pinned link is missing", err
	}
	if err := s.prove(); err != nil {
		return "the pinned hooks do not work", err
	}
	return "", nil
}

func (s *Sensor) takeOverHooks() error {
	if err := s.kernel.Open(lineagePrograms...); err != nil {
		return err
	}
	var err error
	for _, d := range doors {
		if d.tier != s.tier {
			continue
		}
		if err = s.kernel.Open(d.programs...); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	for _, set := range threadExecSets {
		_ = s.kernel.Open(set...) // optional
	}
	for _, f := range features {
		if err := s.takeOverFeature(f); err != nil {
			return err
		}
	}
	for _, program := range walkers {
		if err := s.kernel.OpenWalker(program); err != nil {
			return err
		}
	}
	s.noteTheRest("refused when the sensor was first attached")
	return nil
}

// takeOverFeature opens what is pinned of a feature, and follows the configuration in what is optional.
func (s *Sensor) takeOverFeature(f feature) error {
	for _, set := range f.sets {
		if s.kernel.Open(set...) != nil {
			continue
		}
		if s.wants(f) {
			return nil
		}
		err := s.kernel.Detach(set...)
		s.kernel.Note(hooks.Off, unwanted, set...)
		return err
	}
	if f.optIn != nil && s.wants(f) {
		s.attachFeature(f)
	}
	return nil
}
