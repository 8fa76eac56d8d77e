// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
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

// iterate loads a program that walks, and runs it once.
func (s *Sensor) iterate(name string) error {
	p, err := s.loadProgram(name)
	if err != nil {
		return errors.New(reason(err))
	}
	defer p.Close()
	if err := runIterator(p); err != nil {
		return errors.New(reason(err))
	}
	return nil
}

// Holders are the processes that hold the client's end of a connection.
type Holders struct {
	// Own and Others are the descriptors of the process that connected and of all others;
	// OtherTGID is one of these.
	Own, Others, OtherTGID uint32
	// Rings is more than 0 if that process has or used io_uring, which may hold the socket unseen.
	Rings uint32
}

// Sole reports whether nobody but the process that connected can hold the client's end.
func (h Holders) Sole() bool { return h.Own > 0 && h.Others == 0 && h.Rings == 0 }

// Holders returns who holds the client's end of an accepted socket (T2; see holders.bpf.h for what
// can hide from it). It looks at every descriptor of the host, about 1 ms: for when Binding tells of
// more references than descriptors. ErrNoRecord when the end was closed meanwhile.
func (s *Sensor) Holders(connFD int) (Holders, error) {
	if s.tier != selectors.TierT2 {
		return Holders{}, fmt.Errorf("%w: tier %s does not ask for holders", ErrNoRecord, s.tier)
	}
	b, err := s.Binding(connFD)
	if err != nil {
		return Holders{}, err
	}
	s.looking.Lock()
	defer s.looking.Unlock()
	q := held{File: b.file, Start: b.Task.Process.StartBoottime, TGID: b.Task.Process.TGID}
	if err := s.maps["held"].Put(uint32(0), q); err != nil {
		return Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	if err := errors.Join(s.iterate(holdersProgram), s.iterate(ringsProgram)); err != nil {
		return Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	if err := s.maps["held"].Lookup(uint32(0), &q); err != nil {
		return Holders{}, fmt.Errorf("asking for the holders of a socket: %w", err)
	}
	after, err := s.Binding(connFD)
	if err != nil {
		return Holders{}, err
	}
	if after.file == 0 || after.file != b.file || after.Task.Process != b.Task.Process {
		return Holders{}, ErrNoRecord
	}
	return Holders{q.Own, q.Others, q.OtherTGID, q.Rings}, nil
}

// Now returns the credentials and cgroup that a process has at this moment; ErrNoRecord if it
// is gone. It walks over every process of the host, about 1 ms: for people's questions.
func (s *Sensor) Now(key selectors.ProcessKey) (Now, error) {
	s.looking.Lock()
	defer s.looking.Unlock()
	if err := s.maps["looked"].Put(uint32(0), looked{TGID: uint64(key.TGID)}); err != nil {
		return Now{}, fmt.Errorf("asking for a process: %w", err)
	}
	if err := s.iterate(lookProgram); err != nil {
		return Now{}, fmt.Errorf("asking for a process: %w", err)
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
