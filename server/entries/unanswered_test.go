// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

// unanswering is a store that does not answer some commits, as when a leader dies: it has written them
// if lost is not set.
type unanswering struct {
	*store.Store
	left atomic.Int64
	lost bool
	hung sync.WaitGroup // commits that will not be answered
}

func (u *unanswering) CommitEach(ctx context.Context, common []store.Compare, txns []store.Txn) (int64, []error, error) {
	if u.left.Add(-1) < 0 {
		return u.Store.CommitEach(ctx, common, txns)
	}
	if !u.lost {
		if _, _, err := u.Store.CommitEach(ctx, common, txns); err != nil {
			return 0, nil, err
		}
	}
	u.hung.Done()
	<-ctx.Done()
	return 0, nil, fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
}

func (u *unanswering) hang(commits int) {
	u.hung.Add(commits)
	u.left.Store(int64(commits))
}

// TestUnansweredWrites: a write that the store did not answer is done exactly once all the same, and
// its caller is told that it is done, not that somebody did it before.
func TestUnansweredWrites(t *testing.T) {
	for _, lost := range []bool{true, false} {
		t.Run(fmt.Sprintf("lost %v", lost), func(t *testing.T) {
			t.Parallel()
			u := &unanswering{Store: storetest.Open(t), lost: lost}
			u.left.Store(0)
			r := open(t, u)
			u.hang(1)
			made := create(t, r, entry("/agent", "/w", "a:1"), entry("/agent", "/x", "a:1"))
			if res := r.Create(t.Context(), []*selectors.Entry{entry("/agent", "/w", "a:1")}); !errors.Is(res[0].Err, entries.ErrSimilar) {
				t.Errorf("the same again: %v", res[0].Err)
			}
			u.hang(1)
			res := r.Update(t.Context(), []entries.Update{{ID: made[0].ID, Change: func(e *selectors.Entry) error { e.Hint += "!"; return nil }}})
			if res[0].Err != nil || res[0].Entry.Hint != "!" || res[0].Entry.Revision != 1 {
				t.Errorf("update: %+v", res[0])
			}
			u.hang(1)
			if res := r.Delete(t.Context(), []string{made[1].ID}); res[0].Err != nil {
				t.Errorf("delete: %v", res[0].Err)
			}
			if e := r.Get(made[0].ID); e == nil || e.Hint != "!" || r.Get(made[1].ID) != nil {
				t.Errorf("left: %+v, %+v", e, r.Get(made[1].ID))
			}
			if kvs, _, _ := u.Snapshot(t.Context(), "e/"); len(kvs) != 2 { // and e/writer
				t.Errorf("%d entries stored, want 1", len(kvs))
			}
		})
	}
}

// TestUnansweredWritesOfAnother: what another server wrote meanwhile is not taken for ours.
func TestUnansweredWritesOfAnother(t *testing.T) {
	u := &unanswering{Store: storetest.Open(t), lost: true}
	r, other := open(t, u), open(t, u.Store)
	e := create(t, r, entry("/agent", "/w", "a:1"))[0]
	for other.Get(e.ID) == nil {
		time.Sleep(time.Millisecond)
	}
	u.hang(1)
	told := make(chan entries.Result, 1)
	go func() {
		told <- r.Update(t.Context(), []entries.Update{{ID: e.ID, Change: func(e *selectors.Entry) error { e.Hint += "ours"; return nil }}})[0]
	}()
	u.hung.Wait()
	if res := other.Update(t.Context(), []entries.Update{{ID: e.ID, Change: func(e *selectors.Entry) error { e.Hint += "theirs "; return nil }}}); res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	if res := <-told; res.Err != nil || res.Entry.Hint != "theirs ours" || res.Entry.Revision != 2 {
		t.Errorf("%+v", res)
	}
}

// TestUnansweredWritesDelayNoOthers: as many commits as are made at a time are not answered, and a write
// below another parent is.
func TestUnansweredWritesDelayNoOthers(t *testing.T) {
	const committers = 4
	u := &unanswering{Store: storetest.Open(t), lost: true}
	r := open(t, u)
	u.hang(committers)
	var group sync.WaitGroup
	defer group.Wait()
	for i := range committers {
		group.Go(func() {
			if res := r.Create(t.Context(), []*selectors.Entry{entry(fmt.Sprintf("/agent/%d", i), "/w", "a:1")}); res[0].Err != nil {
				t.Error(res[0].Err)
			}
		})
		for u.left.Load() > int64(committers-i-1) {
			time.Sleep(time.Millisecond)
		}
	}
	u.hung.Wait()
	began := time.Now()
	create(t, r, entry("/agent/other", "/w", "a:1"))
	if took := time.Since(began); took > 2*time.Second { // those who hang are tried again after 2.5 s
		t.Errorf("another's write took %s", took)
	}
}
