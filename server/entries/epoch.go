// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"errors"

	"github.com/assay-id/assay/server/store"
)

// writerKey is among the entries' keys so that the replica sees it change in its place among their changes.
const writerKey = entryPrefix + "writer"

// epoch is a time in which one server alone writes entries, or several do. Each commit compares it. Who is alone needs no
// guards, which are half of what a creation writes: his replica and what he has under way are
// all there is. A server claims the writing when it starts, before it reads the entries. When
// another one has something to write it makes it everybody's, until a server claims it again; what
// the first one had under way fails and is planned anew. A commit that was never answered may take effect late, as long
// as its epoch lasts; so he who is alone begins another one then, and sees what it left, before he writes on.
type epoch struct {
	writer string // a Registry's self, or "": all, with guards
	at     int64  // revision of its key, 0: it is not there
}

// holds is the compare of each commit.
func (e epoch) holds() []store.Compare { return []store.Compare{store.Unchanged(writerKey, e.at)} }

// begin is the transaction of another epoch.
func begin(writer string) store.Txn {
	return store.Txn{Puts: []store.KV{{Key: writerKey, Value: []byte(writer)}}, Essential: true}
}

// claim asks to be the only writer. If that fails we are not, which is as well.
func (r *Registry) claim(ctx context.Context) {
	if _, _, err := r.cfg.Store.CommitEach(ctx, nil, []store.Txn{begin(r.self)}); err != nil {
		r.cfg.Logger.Debug("can not be the only one who writes entries; writing with guards", "error", err)
	}
}

// end makes another epoch of one. The error is always there; a *store.ConflictError says which revision shows
// another: then nothing of the former is on its way any more.
func (r *Registry) end(ctx context.Context, now epoch, writer string) error {
	revision, verdicts, err := r.cfg.Store.CommitEach(ctx, now.holds(), []store.Txn{begin(writer)})
	if err = errors.Join(append(verdicts, err)...); err != nil {
		return err
	}
	return &store.ConflictError{Revision: revision}
}
