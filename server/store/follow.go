// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
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
