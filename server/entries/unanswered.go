// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store"
)

// answered is when a commit counts as lost with the leader that it was sent to: a new one is there by then,
// and etcd itself would say so after seven seconds.
const answered = 2500 * time.Millisecond

// try has plans written, a second time if the first is not answered in time: it may have been lost, or
// not, or come to the store later. Both compare and write the same guards, or the second ends the epoch of the first,
// so that the first has no effect after the second; unsure says that it may have had one before, to which a
// conflict is no answer.
func (w *writer) try(ctx context.Context, plans []*plan) (revision int64, verdicts []error, unsure bool, err error) {
	now := plans[0].epoch // one take, one epoch
	switch {
	case now.writer == "":
	case now.writer != w.r.self:
		return 0, nil, false, w.r.end(ctx, now, "")
	case w.doubts(now):
		return 0, nil, false, w.r.end(ctx, now, w.r.self)
	}
	txns := make([]store.Txn, len(plans))
	for i, p := range plans {
		txns[i] = p.txn()
	}
	first, cancel := context.WithTimeout(ctx, answered)
	defer cancel()
	revision, verdicts, err = w.r.cfg.Store.CommitEach(first, now.holds(), txns)
	if err != nil && first.Err() != nil {
		unsure = true
		if now.writer != "" {
			txns = append(txns, begin(w.r.self))
		}
		revision, verdicts, err = w.r.cfg.Store.CommitEach(ctx, now.holds(), txns)
	}
	return revision, verdicts[:min(len(verdicts), len(plans))], unsure, err
}

// doubts reports whether something may be on its way to the store that belongs to this epoch and whose caller
// was told that it failed.
func (w *writer) doubts(now epoch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.doubt == now.at
}

// lookFor notes which plans the replica shows to be done. A plan is written as a whole or not at all.
func (r *Registry) lookFor(plans []*plan) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, p := range plans {
		p.landed = !slices.ContainsFunc(p.ops, func(o op) bool { return !r.shows(&o) })
	}
}

// shows reports whether the replica is as the operation leaves it.
func (r *Registry) shows(o *op) bool {
	for _, put := range o.puts {
		if !strings.HasPrefix(put.Key, entryPrefix) {
			continue
		}
		n := r.find(put.Key)
		created := o.entry.Revision == 0 // its key is nobody else's
		if n == 0 || !created && !bytes.Equal(stored(r.replica.Key(n), r.replica.Entry(n)).Value, put.Value) {
			return false
		}
	}
	return !slices.ContainsFunc(o.deletes, func(key string) bool {
		return strings.HasPrefix(key, entryPrefix) && r.find(key) != 0
	})
}
