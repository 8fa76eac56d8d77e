// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

var errStatus = errors.New("malformed /proc/PID/status")

// Status is what proc_pid_status(5) tells of rights, as numbers of the reader's user namespace.
type Status struct {
	// UIDs and GIDs are real, effective, saved and of the file system.
	UIDs, GIDs [4]uint32
	Groups     []uint32
	// Permitted and Effective are sets of capabilities, bit n for capability n.
	Permitted, Effective uint64
	NoNewPrivs           bool
	Seccomp              uint32
}

// parseStatus reads the lines that Status holds. One that is missing is an error, since no
// groups and unknown groups are not the same; but seccomp may be left out of the kernel.
func parseStatus(raw []byte) (s Status, err error) {
	found := 0
	for line := range bytes.Lines(raw) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(rest)
		found++
		switch string(name) {
		case "Uid":
			err = numbers(s.UIDs[:], fields)
		case "Gid":
			err = numbers(s.GIDs[:], fields)
		case "Groups":
			s.Groups = make([]uint32, len(fields))
			err = numbers(s.Groups, fields)
		case "CapPrm":
			s.Permitted, err = capabilities(fields)
		case "CapEff":
			s.Effective, err = capabilities(fields)
		case "NoNewPrivs":
			var n [1]uint32
			err = numbers(n[:], fields)
			s.NoNewPrivs = n[0] != 0
		case "Seccomp":
			found--
			var n [1]uint32
			err = numbers(n[:], fields)
			s.Seccomp = n[0]
		default:
			found--
		}
		if err != nil {
			return Status{}, fmt.Errorf("%w: line %q: %w", errStatus, name, err)
		}
	}
	if found != 6 {
		return Status{}, fmt.Errorf("%w: %d of 6 lines about rights", errStatus, found)
	}
	return s, nil
}

func numbers(out []uint32, fields [][]byte) error {
	if len(fields) != len(out) {
		return fmt.Errorf("%d numbers, want %d", len(fields), len(out))
	}
	for i, f := range fields {
		n, err := strconv.ParseUint(string(f), 10, 32)
		if err != nil {
			return err
		}
		out[i] = uint32(n)
	}
	return nil
}

func capabilities(fields [][]byte) (uint64, error) {
	if len(fields) != 1 {
		return 0, fmt.Errorf("%d words, want one", len(fields))
	}
	return strconv.ParseUint(string(fields[0]), 16, 64)
}
