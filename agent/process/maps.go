// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// OpenMapped opens every file that the process has mapped executable now, each once, by the
// mapping itself (proc_pid_map_files(5)): the very inode, whatever its name leads to. The
// caller closes them, also when there is an error.
func (p *Process) OpenMapped() (files []*os.File, err error) {
	raw, err := os.ReadFile(p.proc("maps"))
	if err := p.after("reading the mappings", err); err != nil {
		return nil, err
	}
	ranges, err := parseMaps(raw)
	if err != nil {
		return nil, err
	}
	for _, r := range ranges {
		f, err := os.Open(p.proc("map_files/" + r))
		switch {
		case errors.Is(err, os.ErrNotExist): // unmapped since
		case err != nil:
			return files, fmt.Errorf("opening a mapped file: %w", err)
		default:
			files = append(files, f)
		}
	}
	return files, p.after("opening the mapped files", nil)
}

var errMaps = errors.New("malformed /proc/PID/maps")

// parseMaps returns the address ranges of executable mappings of files, one for each inode.
func parseMaps(raw []byte) (ranges []string, err error) {
	seen := map[string]bool{}
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line)) // range, permissions, offset, device, inode, path
		if len(f) < 5 {
			return nil, fmt.Errorf("%w: %q", errMaps, line)
		}
		inode := f[3] + " " + f[4]
		if !strings.Contains(f[1], "x") || f[4] == "0" || seen[inode] {
			continue
		}
		start, end, ok := strings.Cut(f[0], "-")
		if !ok || !isHex(start) || !isHex(end) {
			return nil, fmt.Errorf("%w: %q", errMaps, line)
		}
		seen[inode] = true
		// map_files names ranges without leading zeros
		ranges = append(ranges, trimZeros(start)+"-"+trimZeros(end))
	}
	return ranges, nil
}

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

func trimZeros(s string) string {
	if t := strings.TrimLeft(s, "0"); t != "" {
		return t
	}
	return "0"
}
