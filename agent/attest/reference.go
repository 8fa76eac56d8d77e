// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Reference is a running process that somebody else named by its number: pinned, and held to what it was
// then. Whoever has a right to name it is not judged here.
type Reference struct {
	facts    selectors.Facts
	set      selectors.Set
	attestor *Attestor
	process  *process.Process
	was      record.Now
	harmed   record.Tampering // when it was attested

	watch   sync.Once
	closed  chan struct{}
	changed chan struct{} // closed at the first failure

	mu     sync.Mutex
	failed error // the first failure, which is for good
}

// The kernel tells of what happens to processes that connected to the agent; others are looked at.
const (
	glanceEvery = 200 * time.Millisecond // at the record, some µs: the image, what was done to it
	lookEvery   = 10 * time.Second       // at credentials and cgroup, about 1 ms
)

// Process attests the process that has the number now, in the initial PID namespace, and pins it until ctx ends.
// process.ErrGone if there is none.
func (a *Attestor) Process(ctx context.Context, pid int) (*Reference, error) {
	p, err := process.PinPID(a.sensor, pid)
	if err != nil {
		return nil, err
	}
	r := &Reference{attestor: a, process: p, closed: make(chan struct{}), changed: make(chan struct{})}
	if err := r.attest(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	context.AfterFunc(ctx, func() {
		close(r.closed)
		_ = p.Close()
	})
	return r, nil
}

func (r *Reference) attest(ctx context.Context) error {
	task, err := r.attestor.task(r.process)
	if err != nil {
		return err
	}
	if r.was, err = r.attestor.sensor.Now(r.process.Key()); err != nil {
		return err
	}
	r.harmed = task.Integrity.Seen
	facts, err := r.attestor.facts(ctx, subject{r.process, &task, r.was.Credentials, r.was.CgroupID, r.attestor.sensor.Tier()})
	if err != nil {
		return err
	}
	r.facts, r.set = *facts, selectors.Derive(facts)
	return r.Check()
}

// Facts returns what was known of the process when it was named.
func (r *Reference) Facts() *selectors.Facts { return &r.facts }

// Selectors returns what Facts derive to.
func (r *Reference) Selectors() selectors.Set { return r.set }

// Done is closed when the process has exited or the reference was let go.
func (r *Reference) Done() <-chan struct{} { return r.process.Done() }

// Check returns an error once the process runs another image, has other credentials or namespaces, is in another
// cgroup, or was tampered with: process.ErrGone if it has exited, process.ErrReplaced otherwise.
func (r *Reference) Check() error { return r.check(true) }

// Changed returns a channel that is closed when Check has something to say.
func (r *Reference) Changed() <-chan struct{} {
	r.watch.Do(func() { go r.follow() })
	return r.changed
}

func (r *Reference) follow() {
	ticker := time.NewTicker(glanceEvery)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-r.closed:
			return
		case <-r.Done():
			_ = r.check(false) // it remembers
			return
		case <-ticker.C:
			if r.check(n%int(lookEvery/glanceEvery) == 0) != nil {
				return
			}
		}
	}
}

func (r *Reference) check(closely bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return r.failed
	}
	r.failed = r.glance()
	if r.failed == nil && closely {
		r.failed = r.look()
	}
	if r.failed != nil {
		close(r.changed)
	}
	return r.failed
}

// glance judges the kernel's record of the process.
func (r *Reference) glance() error {
	if err := r.process.Still(); err != nil {
		return err
	}
	task, err := r.attestor.task(r.process)
	if errors.Is(err, record.ErrNoRecord) {
		return errors.Join(process.ErrGone, err)
	} else if err != nil {
		return err
	}
	if task.Process != r.process.Key() {
		return fmt.Errorf("process %d has executed another program: %w", task.Process.TGID, process.ErrReplaced)
	}
	if fresh := task.Integrity.Seen &^ r.harmed; fresh != 0 {
		return fmt.Errorf("process %d did %v to process %d: %w", task.Integrity.ByTGID, fresh, task.Process.TGID, process.ErrReplaced)
	}
	return nil
}

// look judges what only a walk over the host's processes tells.
func (r *Reference) look() error {
	now, err := r.attestor.sensor.Now(r.process.Key())
	switch {
	case errors.Is(err, record.ErrNoRecord):
		return errors.Join(process.ErrGone, err)
	case err != nil:
		return err
	case now.CgroupID != r.was.CgroupID:
		return fmt.Errorf("process %d moved from cgroup %d to %d: %w", r.process.Key().TGID, r.was.CgroupID, now.CgroupID, process.ErrReplaced)
	case !caller.SameRights(r.was.Credentials, now.Credentials):
		return fmt.Errorf("process %d has other credentials: %w", r.process.Key().TGID, process.ErrReplaced)
	}
	return nil
}
