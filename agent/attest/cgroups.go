// SPDX-License-Identifier: Apache-2.0

package attest

import "sync"

// cgroupPaths remembers the paths of cgroups. An id is never given twice in a boot, and the
// unified hierarchy has no rename (kernel/cgroup/cgroup.c), so a path holds for good.
type cgroupPaths struct {
	find func(id uint64) (string, error)

	mu   sync.Mutex
	byID map[uint64]string
}

// rememberedCgroups bounds the memory on hosts that make cgroups all the time.
const rememberedCgroups = 4096

func (c *cgroupPaths) path(id uint64) (string, error) {
	c.mu.Lock()
	path, ok := c.byID[id]
	c.mu.Unlock()
	if ok {
		return path, nil
	}
	path, err := c.find(id)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil || len(c.byID) >= rememberedCgroups {
		c.byID = map[uint64]string{}
	}
	c.byID[id] = path
	return path, nil
}
