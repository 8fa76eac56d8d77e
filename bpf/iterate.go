// SPDX-License-Identifier: Apache-2.0

package bpf

import (
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

// walk puts a question into a map, has programs walk over everything, and returns what stands there then.
func (s *Sensor) walk(in string, question []byte, programs ...string) ([]byte, error) {
	s.walking.Lock()
	defer s.walking.Unlock()
	if err := s.kernel.Maps[in].Put(uint32(0), question); err != nil {
		return nil, err
	}
	for _, p := range programs {
		if err := s.kernel.Iterate(p); err != nil {
			return nil, err
		}
	}
	return s.kernel.Maps[in].LookupBytes(uint32(0))
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
	raw, err := s.walk("held", record.AskHolders(&b), holdersProgram, ringsProgram)
	if err != nil {
		return record.Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	after, err := s.Binding(connFD)
	if err != nil {
		return record.Holders{}, err
	}
	if after.OpenFile == 0 || after.OpenFile != b.OpenFile || after.Task.Process != b.Task.Process {
		return record.Holders{}, record.ErrNoRecord
	}
	return record.DecodeHolders(raw)
}

// Now returns the credentials and cgroup that a process has at this moment; ErrNoRecord if it
// is gone. It walks over every process of the host, about 1 ms: for people's questions.
func (s *Sensor) Now(key selectors.ProcessKey) (record.Now, error) {
	raw, err := s.walk("looked", record.AskNow(key.TGID), lookProgram)
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
