// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/assay-id/assay/server/store"
)

// writer joins what many callers write into few commits. A commit is one transaction for each
// parent, so that another server's writing below one parent delays only that; a move of
// an entry is in the transaction of both its parents. While a transaction is under way no other
// touches its parents: the replica does not show yet what it will have done.
type writer struct {
	r *Registry

	mu      sync.Mutex
	queue   []*job
	claims  map[string]*plan // by guard and by what is done alone: what is under way
	running int              // goroutines in run
	doubt   int64            // the epoch of ours in which a commit was not answered
}

const (
	commitSize   = 256     // operations
	commitBytes  = 1 << 20 // of values
	committers   = 4
	writeTimeout = 30 * time.Second // of a commit until the replica shows it
	conflictTrys = 20
	// patient is how long a commit may take while no others are begun in its place: a store that has a
	// leader needs some milliseconds.
	patient = time.Second
)

// job is one write that a caller waits for.
type job struct {
	ctx    context.Context
	plan   func() (op, error)
	result *Result
	done   *sync.WaitGroup
	tries  int
	guards []string // as last planned, when it had to wait
}

func (j *job) finish(res Result) {
	*j.result = res
	j.done.Done()
}

// plan is one transaction: operations on the same parents.
type plan struct {
	jobs   []*job
	ops    []op
	at     int64 // replica's revision
	epoch  epoch
	guards map[string]bool
	landed bool // a commit that was not answered has written it
}

// write does n writes and returns when the replica shows them. Writes below the same parent are
// done in their order.
func (w *writer) write(ctx context.Context, n int, item func(int) (op, error)) []Result {
	results := make([]Result, n)
	var done sync.WaitGroup
	done.Add(n)
	w.mu.Lock()
	for i := range n {
		w.queue = append(w.queue, &job{ctx: ctx, plan: func() (op, error) { return item(i) }, result: &results[i], done: &done})
	}
	if w.running < committers && n > 0 {
		w.running++
		go w.run()
	}
	w.mu.Unlock()
	done.Wait()
	return results
}

// run commits until nothing is left that it could.
func (w *writer) run() {
	for {
		w.mu.Lock()
		plans := w.take()
		if len(plans) == 0 {
			w.running--
			w.mu.Unlock()
			return
		}
		if len(w.queue) > 0 && w.running < committers {
			w.running++
			go w.run()
		}
		w.mu.Unlock()
		w.commit(plans)
	}
}

// take plans writes from the queue for one commit and claims what they touch. Those that would
// touch what is under way stay, and so do later ones that touch the same. It answers those that
// need no commit. The mutex is held.
func (w *writer) take() []*plan {
	if w.claims == nil {
		w.claims = map[string]*plan{}
	}
	w.r.mu.RLock()
	defer w.r.mu.RUnlock()
	t := taking{w: w, plans: map[*plan]bool{}, held: map[string]bool{}}
	var stay []*job
	for i, j := range w.queue {
		if t.ops >= commitSize || t.bytes >= commitBytes {
			stay = append(stay, w.queue[i:]...)
			break
		}
		if !t.job(j) {
			stay = append(stay, j)
		}
	}
	w.queue = stay
	return slices.Collect(maps.Keys(t.plans))
}

// taking is one pass of take over the queue.
type taking struct {
	w          *writer
	plans      map[*plan]bool
	held       map[string]bool // guards of writes that wait
	ops, bytes int
}

// job plans one write, and reports false if it has to wait.
func (t *taking) job(j *job) bool {
	if err := j.ctx.Err(); err != nil {
		j.finish(Result{Err: err})
		return true
	}
	if slices.ContainsFunc(j.guards, t.busy) {
		t.hold(j.guards)
		return false
	}
	o, err := j.plan()
	if err != nil {
		j.finish(Result{o.entry, err})
		return true
	}
	p, ok := t.owner(&o)
	if !ok {
		j.guards = o.guards
		t.hold(o.guards)
		return false
	}
	if p == nil {
		p = &plan{at: t.w.r.revision, epoch: t.w.r.epoch, guards: map[string]bool{}}
		t.plans[p] = true
	}
	p.jobs, p.ops = append(p.jobs, j), append(p.ops, o)
	for _, g := range o.guards {
		p.guards[g] = true
		t.w.claims[g] = p
	}
	for _, key := range o.alone {
		t.w.claims[key] = p
	}
	t.ops++
	for _, put := range o.puts {
		t.bytes += len(put.Value)
	}
	return true
}

// busy reports whether a guard is another commit's, or of a write that waits.
func (t *taking) busy(guard string) bool {
	p := t.w.claims[guard]
	return t.held[guard] || p != nil && !t.plans[p]
}

func (t *taking) hold(guards []string) {
	for _, g := range guards {
		t.held[g] = true
	}
}

// owner returns the plan that an operation has to join, nil for a new one, or false.
func (t *taking) owner(o *op) (owner *plan, ok bool) {
	for _, key := range o.alone {
		if t.w.claims[key] != nil {
			return nil, false
		}
	}
	for _, g := range o.guards {
		p := t.w.claims[g]
		if t.busy(g) || p != nil && owner != nil && owner != p {
			return nil, false
		}
		if p != nil {
			owner = p
		}
	}
	return owner, true
}

// commit writes plans and answers their callers once the replica shows it. Where another server
// was faster it waits for the replica to see that, and the writes are planned again.
func (w *writer) commit(plans []*plan) {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	defer w.lendPlace()()
	revision, verdicts, unsure, err := w.try(ctx, plans)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) { // of all plans: the epoch is another
		verdicts, err = slices.Repeat([]error{err}, len(plans)), nil
	}
	written := false
	for i := range verdicts {
		switch {
		case verdicts[i] == nil:
			written = true
		case errors.As(verdicts[i], &conflict):
			// Waits for all: the rest is likely there before.
			err = errors.Join(err, w.r.seen(ctx, conflict.Revision))
		}
	}
	if err == nil && written {
		err = w.r.seen(ctx, revision)
	}
	if err == nil && unsure {
		w.r.lookFor(plans)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := plans[0].epoch; err != nil && now.writer != "" {
		w.doubt = now.at // before others can plan the same
	}
	var again []*job
	for i, p := range plans {
		again = append(again, w.end(p, err, verdicts, i)...)
	}
	w.queue = append(again, w.queue...)
}

// lendPlace lets others commit in our place when we are not answered soon, until the returned function is called.
func (w *writer) lendPlace() (back func()) {
	lent := false // the mutex guards it
	timer := time.AfterFunc(patient, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		lent = true
		w.running--
		if len(w.queue) > 0 && w.running < committers {
			w.running++
			go w.run()
		}
	})
	return func() {
		timer.Stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		if lent {
			w.running++
		}
	}
}

// end releases a plan and answers its callers; it returns those whose writes have to be
// planned again. The mutex is held.
func (w *writer) end(p *plan, err error, verdicts []error, i int) (again []*job) {
	if err == nil {
		err = verdicts[i]
	}
	if p.landed {
		err = nil
	}
	for k, j := range p.jobs {
		for _, key := range slices.Concat(p.ops[k].guards, p.ops[k].alone) {
			delete(w.claims, key)
		}
		j.tries++
		switch {
		case err == nil:
			j.finish(Result{Entry: p.ops[k].entry})
		case errors.Is(err, store.ErrConflict) && j.tries < conflictTrys:
			again = append(again, j)
		default:
			j.finish(Result{Err: err})
		}
	}
	return again
}

func (p *plan) txn() store.Txn {
	var t store.Txn
	if p.epoch.writer == "" {
		for g := range p.guards {
			t.Compares = append(t.Compares, store.NotAfter(g, p.at))
			t.Puts = append(t.Puts, store.KV{Key: g})
		}
	}
	for _, o := range p.ops {
		for _, key := range o.fresh {
			t.Compares = append(t.Compares, store.Unchanged(key, 0))
		}
		t.Puts, t.Deletes = append(t.Puts, o.puts...), append(t.Deletes, o.deletes...)
	}
	return t
}
