// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const defaultMinFree = 512 << 20

// disk guards the room that etcd needs: it ends its process when a write finds none.
type disk struct {
	path    string
	minFree uint64
}

// room returns the bytes that are free and the floor below which writes are refused.
func (d *disk) room() (free, floor uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the free space of %s: %w", d.path, err)
	}
	block := uint64(st.Bsize)
	floor = d.minFree
	if floor == 0 {
		floor = min(defaultMinFree, st.Blocks*block/10)
	}
	return st.Bavail * block, floor, nil
}

func (d *disk) sentence(free, floor uint64) string {
	return fmt.Sprintf("the file system of %s has %d MiB left and new entries need %d MiB; free space, or move data_dir (deleting entries still works)",
		d.path, free>>20, floor>>20)
}
