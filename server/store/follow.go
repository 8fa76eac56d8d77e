// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Watcher tells of changes (Store).
type Watcher interface {
	Watch(ctx context.Context, prefix string, after int64) <-chan Batch
}

// Follower keeps a replica of the keys under a prefix up to date.
type Follower struct {
	Prefix string
	// What is followed, in the plural, for the log.
	What string
	// After returns the revision that the replica is at.
	After func() int64
	// Apply brings it to a later one.
	Apply func(Batch)
	// Rebuild replaces it by the store's present content, when track was lost.
	Rebuild func(context.Context) error
	Logger  *slog.Logger
}

// rebuildAgain is how long a rebuild that failed is waited for.
const rebuildAgain = time.Second

// Run follows until ctx ends.
func (f Follower) Run(ctx context.Context, w Watcher) {
	for ctx.Err() == nil {
		for batch := range w.Watch(ctx, f.Prefix, f.After()) {
			if batch.Err != nil {
				f.Logger.Warn("lost track of the "+f.What+"; reading them again", "error", batch.Err)
				break
			}
			f.Apply(batch)
		}
		for ctx.Err() == nil {
			err := f.Rebuild(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			f.Logger.Error("the replica of the "+f.What+" is out of date; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(rebuildAgain):
			}
		}
	}
}

// Await waits until a replica shows a revision. at returns the one that it shows and a channel that
// is closed when it shows another; done is closed when the replica is, or nil. what is followed, in the
// plural, for errors.
func Await(ctx context.Context, what string, revision int64, done <-chan struct{}, at func() (int64, <-chan struct{})) error {
	for {
		shown, moved := at()
		if shown >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-done:
			return fmt.Errorf("the replica of the %s is closed", what)
		case <-ctx.Done():
			return fmt.Errorf("wait for the %s to reach revision %d: %w", what, revision, ctx.Err())
		}
	}
}
