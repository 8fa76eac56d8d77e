// SPDX-License-Identifier: Apache-2.0

package replica

import "slices"

// Graves keep the numbers of removed records until no reader needs their ids.
type Graves struct {
	Every int     // so many are waited for between sweeps
	Most  int     // a reader that is further behind starts anew
	queue []grave // in the order of revisions
	next  int     // the length from which on to sweep
}

type grave struct {
	number   Number
	revision int64
}

// Readers are those who may ask for the ids of removed records.
type Readers interface {
	// Oldest is the revision that all have passed.
	Oldest() int64
	// Forget has those who have not passed the revision start anew.
	Forget(revision int64)
}

// Len is how many removals are remembered.
func (g *Graves) Len() int { return len(g.queue) }

// Remove takes a record out of the replica; revision is that of its removal.
func (g *Graves) Remove(from *Replica, n Number, revision int64) {
	from.Remove(n)
	g.queue = append(g.queue, grave{n, revision})
}

// Sweep frees what all readers have passed, now and then.
func (g *Graves) Sweep(from *Replica, readers Readers) {
	if len(g.queue) < max(g.next, g.Every) {
		return
	}
	passed := readers.Oldest()
	if over := len(g.queue) - g.Most; over > 0 && g.queue[over-1].revision > passed {
		passed = g.queue[over-1].revision
		readers.Forget(passed)
	}
	done := 0
	for done < len(g.queue) && g.queue[done].revision <= passed {
		from.Free(g.queue[done].number)
		done++
	}
	g.queue = slices.Delete(g.queue, 0, done)
	g.next = len(g.queue) + g.Every
}
