// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/assay-id/assay/selectors"
)

// seed gives every running process a record. A process can be born behind the iterator's
// back of a parent that had no record yet, so it runs until it finds nobody new.
func (s *Sensor) seed() error {
	p, err := s.loadProgram(seedProgram)
	if err != nil {
		return err
	}
	defer p.Close()
	var before uint64
	for range 8 {
		if err := runIterator(p); err != nil {
			return err
		}
		c, err := s.counters()
		if err != nil {
			return err
		}
		if c.seeded == before {
			return nil
		}
		before = c.seeded
	}
	return nil
}

func runIterator(p *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// Now returns the credentials and cgroup that a process has at this moment; ErrNoRecord if it
// is gone. It walks over every process of the host, about 1 ms: for people's questions.
func (s *Sensor) Now(key selectors.ProcessKey) (Now, error) {
	s.looking.Lock()
	defer s.looking.Unlock()
	if err := s.maps["looked"].Put(uint32(0), looked{TGID: uint64(key.TGID)}); err != nil {
		return Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	p, err := s.loadProgram(lookProgram)
	if err != nil {
		return Now{}, fmt.Errorf("asking for a process: %s", reason(err))
	}
	defer p.Close()
	if err := runIterator(p); err != nil {
		return Now{}, fmt.Errorf("asking for a process: %s", reason(err))
	}
	raw, err := s.maps["looked"].LookupBytes(uint32(0))
	if err != nil {
		return Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	if len(raw) != lookedSize {
		return Now{}, fmt.Errorf("%w: an answer of %d bytes, want %d", ErrMalformed, len(raw), lookedSize)
	}
	r := reader(raw[8:])
	now, start := decodeNow(&r)
	if start != key.StartBoottime {
		return Now{}, ErrNoRecord
	}
	s.markHost(&now.Credentials.Namespaces)
	return now, nil
}
