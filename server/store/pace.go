// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"sync"
	"time"
)

const (
	// slowWrite is how long a write may take before people are told: a disk's usual worst is a tenth of it.
	slowWrite = time.Second
	// paceFor is how long what was measured says something.
	paceFor = 30 * time.Second
	// enoughWrites: one that waited for a member to start says nothing about its disk.
	enoughWrites = 3
)

// pace is how long writes took lately: a mean in which the last one counts a quarter.
type pace struct {
	mu   sync.Mutex
	n    int // writes, none long after the one before
	mean time.Duration
	at   time.Time // of the last write's end
}

func (p *pace) took(d time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.at) > paceFor {
		p.n, p.mean = 0, d
	}
	p.n++
	p.mean += (d - p.mean) / 4
	p.at = now
}

// lately is zero if too little was written lately to tell.
func (p *pace) lately(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n < enoughWrites || now.Sub(p.at) > paceFor {
		return 0
	}
	return p.mean
}

// slow is a sentence if writes take too long, else "".
func (s *Store) slow() string {
	d := s.pace.lately(s.now())
	if d < slowWrite {
		return ""
	}
	return fmt.Sprintf("writes to the store take more than %s: its disk, or that of the member that leads, is slow or overloaded; identities are signed meanwhile", slowWrite)
}
