// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

// names maps numbers to names as one of the host's files has them (passwd(5), group(5)). The
// file is read again when it changes, so a look-up costs one stat.
type names struct {
	path string

	mu       sync.Mutex
	modified time.Time
	size     int64
	byID     map[uint32]string
}

// lookup returns the name of a number, or "" when the file has none or can not be read.
func (n *names) lookup(id uint32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	st, err := os.Stat(n.path)
	if err != nil {
		return ""
	}
	if n.stale(st) {
		data, err := os.ReadFile(n.path)
		if err != nil {
			return ""
		}
		n.byID, n.modified, n.size = parseNames(data), st.ModTime(), st.Size()
	}
	return n.byID[id]
}

func (n *names) stale(st fs.FileInfo) bool {
	return n.byID == nil || !st.ModTime().Equal(n.modified) || st.Size() != n.size
}

// parseNames reads lines "name:password:number:…"; the first name of a number counts, and
// what is not such a line is left out.
func parseNames(data []byte) map[uint32]string {
	out := map[uint32]string{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		f := bytes.SplitN(lines.Bytes(), []byte(":"), 4)
		if len(f) < 3 || len(f[0]) == 0 || f[0][0] == '#' {
			continue
		}
		id, err := strconv.ParseUint(string(f[2]), 10, 32)
		if err != nil {
			continue
		}
		if _, taken := out[uint32(id)]; !taken {
			out[uint32(id)] = string(f[0])
		}
	}
	return out
}
