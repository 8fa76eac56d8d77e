// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
	"github.com/assay-id/assay/server/store"
)

// Why one entry of a batch was not written. Store errors pass through as they are.
var (
	// ErrSimilar: an entry with the same SPIFFE ID, parent and set of selectors exists; it is
	// in the Result.
	ErrSimilar = errors.New("similar entry already exists")
	// ErrDuplicate: the id is taken, or a selector or DNS name is there twice.
	ErrDuplicate = errors.New("duplicate")
	// ErrNotFound: no entry has that id.
	ErrNotFound = errors.New("entry not found")
	// ErrNoBundle: the entry federates with a trust domain whose bundle is not known.
	ErrNoBundle = errors.New("unable to find federated bundle")
)

// Result of one entry of a batch.
type Result struct {
	// Entry as stored; with ErrSimilar the one that is in the way; nil with other errors.
	Entry *selectors.Entry
	Err   error
}

// Update changes one entry.
type Update struct {
	ID string
	// Change edits a copy of the stored entry; ID, CreatedAt and Revision are kept from it.
	Change func(*selectors.Entry) error
}

// Create stores new entries, each on its own merits. ID may be empty; Revision and CreatedAt
// are set here.
func (r *Registry) Create(ctx context.Context, es []*selectors.Entry) []Result {
	return r.writer.write(ctx, len(es), func(i int) (op, error) { return r.planCreate(es[i]) })
}

// Update changes entries. It does not look for similar ones (as SPIRE). Revision rises by one
// with every update, also one that changes nothing.
func (r *Registry) Update(ctx context.Context, us []Update) []Result {
	return r.writer.write(ctx, len(us), func(i int) (op, error) { return r.planUpdate(us[i]) })
}

// Delete removes entries; the results hold what was removed.
func (r *Registry) Delete(ctx context.Context, ids []string) []Result {
	return r.writer.write(ctx, len(ids), func(i int) (op, error) { return r.planDelete(ids[i]) })
}

// Prune deletes the entries that have expired and returns how many they were.
func (r *Registry) Prune(ctx context.Context) (int, error) {
	now := r.cfg.Now()
	n := 0
	for _, res := range r.Delete(ctx, r.ids(func(e *selectors.Entry) bool { return e.Expired(now) })) {
		if res.Err != nil && !errors.Is(res.Err, ErrNotFound) {
			return n, fmt.Errorf("prune expired entries: %w", res.Err)
		}
		n++
	}
	return n, nil
}

// op is what one write does to the store.
type op struct {
	entry *selectors.Entry // the result
	// guards are written, and may not have been since the replica's revision. Operations
	// on the same parents go into one transaction.
	guards []string
	// alone names what one transaction may be about only once: keys, and what must be unique.
	alone   []string
	fresh   []string // keys that must not exist
	puts    []store.KV
	deletes []string
}

// The plan functions are called with the registry's lock held for reading. They may be called
// again for the same write.

func (r *Registry) planCreate(in *selectors.Entry) (op, error) {
	e := *in
	if err := r.validate(&e); err != nil {
		return op{}, err
	}
	if n := r.replica.Similar(&e); n != 0 {
		return op{entry: r.replica.Entry(n)}, ErrSimilar
	}
	if err := r.unique(&e); err != nil {
		return op{}, err
	}
	e.Selectors = e.SelectorSet() // as everywhere else
	key, err := uuid.NewV7()
	if err != nil {
		return op{}, fmt.Errorf("make an entry id: %w", err)
	}
	o := op{entry: &e, guards: []string{guardKey(e.ParentID)}}
	o.alone = []string{e.SPIFFEID.String() + " " + e.ParentID.String() + " " + e.SelectorSet().String()}
	if e.ID == "" {
		e.ID = key.String()
	} else {
		if r.replica.ByID(e.ID) != 0 {
			return op{}, fmt.Errorf("%w entry ID %q", ErrDuplicate, e.ID)
		}
		chosen := idPrefix + e.ID
		o.fresh, o.alone = []string{chosen}, append(o.alone, chosen)
		o.puts = append(o.puts, store.KV{Key: chosen, Value: []byte(entryPrefix + key.String())})
	}
	e.Revision, e.CreatedAt = 0, r.cfg.Now().UTC().Truncate(time.Second)
	o.puts = append(o.puts, stored(key, &e))
	return o, nil
}

func (r *Registry) planUpdate(u Update) (op, error) {
	return r.planChange(u.ID, func(e *selectors.Entry) error {
		if err := u.Change(e); err != nil {
			return err
		}
		if err := r.validate(e); err != nil {
			return err
		}
		return r.unique(e)
	})
}

// planChange stores what change makes of an entry.
func (r *Registry) planChange(id string, change func(*selectors.Entry) error) (op, error) {
	n := r.replica.ByID(id)
	if n == 0 {
		return op{}, ErrNotFound
	}
	old, e := r.replica.Entry(n), r.replica.Entry(n)
	if err := change(e); err != nil {
		return op{}, err
	}
	e.ID, e.CreatedAt, e.Revision = old.ID, old.CreatedAt, old.Revision+1
	o := op{entry: e, guards: []string{guardKey(old.ParentID)}}
	if e.ParentID != old.ParentID {
		o.guards = append(o.guards, guardKey(e.ParentID))
	}
	put := stored(r.replica.Key(n), e)
	o.puts, o.alone = []store.KV{put}, []string{put.Key}
	return o, nil
}

func (r *Registry) planDelete(id string) (op, error) {
	n := r.replica.ByID(id)
	if n == 0 {
		return op{}, ErrNotFound
	}
	e := r.replica.Entry(n)
	key := r.replica.Key(n).String()
	o := op{entry: e, guards: []string{guardKey(e.ParentID)}, deletes: []string{entryPrefix + key}}
	if id != key {
		o.deletes = append(o.deletes, idPrefix+id)
	}
	o.alone = o.deletes
	return o, nil
}

func stored(key replica.Key, e *selectors.Entry) store.KV {
	return store.KV{Key: entryPrefix + key.String(), Value: replica.Encode(key, e)}
}

// guardKey is short, since each write stores it anew. Two parents with one guard only wait for
// each other.
func guardKey(parent spiffeid.ID) string {
	sum := sha256.Sum256([]byte(parent.String()))
	return guardPrefix + base64.RawURLEncoding.EncodeToString(sum[:16])
}
