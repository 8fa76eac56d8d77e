// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// programs finds the programs of ancestors (lineage.Programs).
type programs struct{ a *Attestor }

// Known returns what was read of the image while a process ran it.
func (p programs) Known(execID uint64) (selectors.Executable, bool) { return p.a.hasher.Known(execID) }

var errUnknownLately = errors.New("the image had no program that could be read a moment ago")

// Running reads the program of the image from a process that runs it.
func (p programs) Running(ctx context.Context, holder selectors.ProcessKey) (selectors.Executable, error) {
	if p.a.unknown.has(holder.ExecID) {
		return selectors.Executable{}, errUnknownLately
	}
	exe, err := p.read(ctx, holder)
	if err != nil && ctx.Err() == nil {
		p.a.unknown.add(holder.ExecID)
	}
	return exe, err
}

func (p programs) read(ctx context.Context, holder selectors.ProcessKey) (selectors.Executable, error) {
	proc, err := process.Pin(p.a.sensor, holder)
	if err != nil {
		return selectors.Executable{}, err
	}
	defer proc.Close()
	task, err := p.a.task(proc)
	if err != nil {
		return selectors.Executable{}, err
	}
	return p.a.hasher.Executable(ctx, proc, image(&task))
}

// unknownImages remembers for a moment which ancestors can not be read, so that a chain with
// exited ancestors costs its look-ups once a second and not at every call. Forgetting is
// harmless, and so is remembering: unknown yields no selector.
type unknownImages struct {
	mu    sync.Mutex
	until map[uint64]time.Time
}

const (
	unknownFor = time.Second
	maxUnknown = 4096
)

func (u *unknownImages) has(execID uint64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return time.Now().Before(u.until[execID])
}

func (u *unknownImages) add(execID uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.until == nil || len(u.until) >= maxUnknown {
		u.until = map[uint64]time.Time{}
	}
	u.until[execID] = time.Now().Add(unknownFor)
}
