// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"sync"

	"github.com/assay-id/assay/selectors"
)

// callers are the open connections by process. The zero callers is ready.
type callers struct {
	mu     sync.Mutex
	byProc map[identity]map[*Caller]struct{}
}

// identity is a process, whatever image it runs.
type identity struct {
	tgid  uint32
	start uint64
}

func processOf(k selectors.ProcessKey) identity { return identity{k.TGID, k.StartBoottime} }

func (cs *callers) add(c *Caller) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	p := processOf(c.Key())
	if cs.byProc[p] == nil {
		if cs.byProc == nil {
			cs.byProc = map[identity]map[*Caller]struct{}{}
		}
		cs.byProc[p] = map[*Caller]struct{}{}
	}
	cs.byProc[p][c] = struct{}{}
}

func (cs *callers) remove(c *Caller) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	p := processOf(c.Key())
	delete(cs.byProc[p], c)
	if len(cs.byProc[p]) == 0 {
		delete(cs.byProc, p)
	}
}

// notify tells every connection of the process.
func (cs *callers) notify(k selectors.ProcessKey) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.byProc[processOf(k)] {
		c.change()
	}
}
