// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

// FileState returns the token of a file that was executed or mapped as code, which names its inode
// as long as that is in the kernel's memory, and how often it has been opened for writing since it
// got that. A digest of its content holds wherever both are the same. ErrNoRecord if the file has none, or this tier can not tell.
func (s *Sensor) FileState(fd int) (token, wgen uint64, err error) {
	m := s.kernel.Maps["inodes"]
	if m == nil || !s.kernel.On("on_file_open") {
		return 0, 0, record.ErrNoRecord
	}
	raw, err := m.LookupBytes(uint32(fd))
	if err != nil {
		return 0, 0, fmt.Errorf("looking up a file: %w", err)
	}
	if raw == nil {
		return 0, 0, record.ErrNoRecord
	}
	return record.DecodeFileState(raw)
}

// Code returns what the process that a pidfd names executes. It is no error if that is unknown.
func (s *Sensor) Code(pidfd int) (record.Code, error) {
	if !s.kernel.On(codePrograms[0]) {
		return record.Code{}, nil
	}
	raw, err := s.kernel.Maps["code"].LookupBytes(uint32(pidfd))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || (err == nil && raw == nil) {
		return record.Code{}, nil
	}
	if err != nil {
		return record.Code{}, fmt.Errorf("looking up the mapped code: %w", err)
	}
	return record.DecodeCode(raw)
}
