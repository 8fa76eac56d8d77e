// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// seed gives every running process a record. A process can be born behind the iterator's
// back of a parent that had no record yet, so it runs until it finds nobody new.
func (s *Sensor) seed() error {
	var before uint64
	for range 8 {
		if err := s.kernel.Iterate(seedProgram); err != nil {
			return err
		}
		c, err := s.counters()
		if err != nil {
			return err
		}
		if c.Seeded == before {
			return nil
		}
		before = c.Seeded
	}
	return nil
}

// Holders returns who holds the client's end of an accepted socket (T2; see holders.bpf.h for what
// can hide from it). It looks at every descriptor of the host, about 1 ms: for when Binding tells of
// more references than descriptors. ErrNoRecord when the end was closed meanwhile.
func (s *Sensor) Holders(connFD int) (record.Holders, error) {
	if s.tier != selectors.TierT2 {
		return record.Holders{}, fmt.Errorf("%w: tier %s does not ask for holders", record.ErrNoRecord, s.tier)
	}
	b, err := s.Binding(connFD)
	if err != nil {
		return record.Holders{}, err
	}
	s.looking.Lock()
	defer s.looking.Unlock()
	q := held{File: b.OpenFile, Start: b.Task.Process.StartBoottime, TGID: b.Task.Process.TGID}
	if err := s.kernel.Maps["held"].Put(uint32(0), q); err != nil {
		return record.Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	if err := errors.Join(s.kernel.Iterate(holdersProgram), s.kernel.Iterate(ringsProgram)); err != nil {
		return record.Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	if err := s.kernel.Maps["held"].Lookup(uint32(0), &q); err != nil {
		return record.Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	after, err := s.Binding(connFD)
	if err != nil {
		return record.Holders{}, err
	}
	if after.OpenFile == 0 || after.OpenFile != b.OpenFile || after.Task.Process != b.Task.Process {
		return record.Holders{}, record.ErrNoRecord
	}
	return record.Holders{Own: q.Own, Others: q.Others, OtherTGID: q.OtherTGID, Rings: q.Rings}, nil
}

// Now returns the credentials and cgroup that a process has at this moment; ErrNoRecord if it
// is gone. It walks over every process of the host, about 1 ms: for people's questions.
func (s *Sensor) Now(key selectors.ProcessKey) (record.Now, error) {
	s.looking.Lock()
	defer s.looking.Unlock()
	if err := s.kernel.Maps["looked"].Put(uint32(0), looked{TGID: uint64(key.TGID)}); err != nil {
		return record.Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	if err := s.kernel.Iterate(lookProgram); err != nil {
		return record.Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	raw, err := s.kernel.Maps["looked"].LookupBytes(uint32(0))
	if err != nil {
		return record.Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	now, start, err := record.DecodeNow(raw)
	if err != nil {
		return record.Now{}, err
	}
	if start != key.StartBoottime {
		return record.Now{}, record.ErrNoRecord
	}
	now.Credentials.Namespaces.MarkHost(s.host)
	return now, nil
}
