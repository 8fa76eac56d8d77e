// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

var errStatus = errors.New("malformed /proc/PID/status")

// parseGroups reads the line "Groups:" of proc_pid_status(5). A status without that line is
// an error: no groups and unknown groups are not the same.
func parseGroups(status []byte) ([]uint32, error) {
	for line := range bytes.Lines(status) {
		list, ok := bytes.CutPrefix(line, []byte("Groups:"))
		if !ok {
			continue
		}
		fields := bytes.Fields(list)
		groups := make([]uint32, len(fields))
		for i, f := range fields {
			n, err := strconv.ParseUint(string(f), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%w: group %q", errStatus, f)
			}
			groups[i] = uint32(n)
		}
		return groups, nil
	}
	return nil, fmt.Errorf("%w: no line with groups", errStatus)
}
