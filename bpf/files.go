// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// MappedFile is a file that a process has mapped as code, as it was when it was mapped first.
type MappedFile struct {
	Inode  uint64
	Device uint32 // as File.Device
	// Token and WGen are those of FileState.
	Token, WGen uint64
	// Writers says that somebody had the file open for writing: its content can not be told.
	Writers bool
}

// Code is what a process executes: its program, its libraries, and memory without a file.
type Code struct {
	// Files are distinct, in the order in which they were mapped; also those that were unmapped.
	Files []MappedFile
	// Overflow says that there are more files than are kept (60).
	Overflow bool
	// AnonymousExec says that memory which is no unchanged file was made executable (JIT, or an
	// attack). Executable stacks are not seen.
	AnonymousExec bool
	// Known is false when the hooks did not see the image from its start (T1 only).
	Known bool
}

const (
	inodeStateSize = 16
	mappedFiles    = 60
	codeSize       = 8 + mappedFiles*32
)

// FileState returns the token of a file that was executed or mapped as code, which names its inode
// as long as that is in the kernel's memory, and how often it has been opened for writing since it
// got that. A digest of its content holds wherever both are the same. ErrNoRecord if the file has none, or this tier can not tell.
func (s *Sensor) FileState(fd int) (token, wgen uint64, err error) {
	m := s.maps[inodesMap]
	if m == nil || s.links["on_file_open"] == nil {
		return 0, 0, ErrNoRecord
	}
	raw, err := m.LookupBytes(uint32(fd))
	if err != nil {
		return 0, 0, fmt.Errorf("looking up a file: %w", err)
	}
	if raw == nil {
		return 0, 0, ErrNoRecord
	}
	if len(raw) != inodeStateSize {
		return 0, 0, fmt.Errorf("%w: a file's state of %d bytes", ErrMalformed, len(raw))
	}
	r := reader(raw)
	if token = r.u64(); token == 0 {
		return 0, 0, ErrNoRecord
	}
	return token, r.u64(), nil
}

// Code returns what the process that a pidfd names executes. It is no error if that is unknown.
func (s *Sensor) Code(pidfd int) (Code, error) {
	if s.links[codePrograms[0]] == nil {
		return Code{}, nil
	}
	raw, err := s.maps["code"].LookupBytes(uint32(pidfd))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || (err == nil && raw == nil) {
		return Code{}, nil
	}
	if err != nil {
		return Code{}, fmt.Errorf("looking up the mapped code: %w", err)
	}
	return decodeCode(raw)
}

func decodeCode(raw []byte) (Code, error) {
	if len(raw) != codeSize {
		return Code{}, fmt.Errorf("%w: mapped code of %d bytes, want %d", ErrMalformed, len(raw), codeSize)
	}
	r := reader(raw)
	count, flags := r.u32(), r.u32()
	if flags&^3 != 0 {
		return Code{}, fmt.Errorf("%w: mapped code with flags %#x", ErrMalformed, flags)
	}
	c := Code{Overflow: flags&1 != 0 || count > mappedFiles, AnonymousExec: flags&2 != 0, Known: true}
	for range min(count, mappedFiles) {
		m := MappedFile{Inode: r.u64(), Token: r.u64(), WGen: r.u64(), Device: r.u32(), Writers: r.u32() != 0}
		if m.Inode == 0 { // being written
			return Code{}, nil
		}
		c.Files = append(c.Files, m)
	}
	return c, nil
}
