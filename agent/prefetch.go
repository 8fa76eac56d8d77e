// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

const (
	// prefetchers are how many processes are looked at, at the same time, before they ask.
	prefetchers = 2
	// prefetchQueue is how many may wait for that. Those beyond ask for themselves, as all others do.
	prefetchQueue = 256
)

// prefetch returns who is to be told of executed programs, and has SVIDs signed for those that an entry wants that for.
func (a *Agent) prefetch(ctx context.Context) (executed func(selectors.ProcessKey)) {
	queue := make(chan selectors.ProcessKey, prefetchQueue)
	for range prefetchers {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case key := <-queue:
					if err := a.prefetchFor(ctx, key); err != nil {
						a.log.Debug("nothing was signed before a program asks", "pid", key.TGID, "error", err)
					}
				}
			}
		}()
	}
	return func(key selectors.ProcessKey) {
		if !a.svids.Expecting() {
			return
		}
		select {
		case queue <- key:
		default:
		}
	}
}

// attested is a process as it was when it was looked at.
type attested struct {
	facts *selectors.Facts
	set   selectors.Set
}

func (p attested) Facts() *selectors.Facts  { return p.facts }
func (p attested) Selectors() selectors.Set { return p.set }

func (a *Agent) prefetchFor(ctx context.Context, key selectors.ProcessKey) error {
	p, err := process.Pin(a.evidence, key)
	if err != nil {
		return err // it has exited, or executes something else
	}
	path, err := p.ExecutablePath()
	p.Close()
	if err != nil || !a.svids.Expects(path) {
		return err
	}
	facts, err := a.attestor.PID(ctx, int(key.TGID))
	if err != nil || facts.Process != key {
		return err
	}
	return a.svids.Prefetch(ctx, attested{facts, selectors.Derive(facts)})
}
