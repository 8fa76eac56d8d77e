// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
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

const (
	batchSize    = 500 // entries in one transaction: at most three operations each
	conflictTrys = 20
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
	return batches(es, func(part []*selectors.Entry) []Result {
		return r.write(ctx, len(part), func(p *plan, i int) (*selectors.Entry, error) { return r.planCreate(p, part[i]) })
	})
}

// Update changes entries. It does not look for similar ones (as SPIRE). Revision rises by one
// with every update, also one that changes nothing.
func (r *Registry) Update(ctx context.Context, us []Update) []Result {
	return batches(us, func(part []Update) []Result {
		return r.write(ctx, len(part), func(p *plan, i int) (*selectors.Entry, error) { return r.planUpdate(p, part[i]) })
	})
}

// Delete removes entries; the results hold what was removed.
func (r *Registry) Delete(ctx context.Context, ids []string) []Result {
	return batches(ids, func(part []string) []Result {
		return r.write(ctx, len(part), func(p *plan, i int) (*selectors.Entry, error) { return r.planDelete(p, part[i]) })
	})
}

// Prune deletes the entries that have expired and returns how many they were.
func (r *Registry) Prune(ctx context.Context) (int, error) {
	now := r.cfg.Now()
	var ids []string
	r.mu.RLock()
	for _, rec := range r.replica.ordered {
		if rec.entry.Expired(now) {
			ids = append(ids, rec.entry.ID)
		}
	}
	r.mu.RUnlock()
	n := 0
	for _, res := range r.Delete(ctx, ids) {
		if res.Err != nil && !errors.Is(res.Err, ErrNotFound) {
			return n, fmt.Errorf("prune expired entries: %w", res.Err)
		}
		n++
	}
	return n, nil
}

func batches[T any](items []T, do func([]T) []Result) []Result {
	out := make([]Result, 0, len(items))
	for part := range slices.Chunk(items, batchSize) {
		out = append(out, do(part)...)
	}
	return out
}

// plan is one transaction in the making, seen as if it were already applied.
type plan struct {
	have   *replica
	at     int64             // replica's revision
	puts   map[string][]byte // by key
	gone   map[string]bool   // keys to delete
	guards map[string]bool
	fresh  map[string]bool             // keys that must not exist
	now    map[string]*selectors.Entry // by id: as this plan leaves it; nil: deleted
	keys   map[string]string           // id → e/ key, of entries that this plan writes
	made   map[spiffeid.ID][]*selectors.Entry
}

// write plans all items, commits them as one transaction and waits for the replica to show it.
// When another server was faster it waits for the replica to see that, and plans again.
func (r *Registry) write(ctx context.Context, n int, item func(*plan, int) (*selectors.Entry, error)) []Result {
	r.writing.Lock()
	defer r.writing.Unlock()
	var err error
	for range conflictTrys {
		p, results := r.plan(n, item)
		if len(p.guards) == 0 {
			return results
		}
		var revision int64
		revision, err = r.cfg.Store.Commit(ctx, p.txn())
		if err == nil {
			err = r.seen(ctx, revision)
			return failRest(results, err)
		}
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return failRest(results, err)
		}
		if err := r.seen(ctx, conflict.Revision); err != nil {
			return failRest(results, err)
		}
	}
	_, results := r.plan(n, item)
	return failRest(results, err)
}

func (r *Registry) plan(n int, item func(*plan, int) (*selectors.Entry, error)) (*plan, []Result) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p := &plan{
		have: r.replica, at: r.replica.revision,
		puts: map[string][]byte{}, gone: map[string]bool{}, guards: map[string]bool{}, fresh: map[string]bool{},
		now: map[string]*selectors.Entry{}, keys: map[string]string{}, made: map[spiffeid.ID][]*selectors.Entry{},
	}
	results := make([]Result, n)
	for i := range results {
		results[i].Entry, results[i].Err = item(p, i)
	}
	return p, results
}

// failRest gives the transaction's error to the items that were in it.
func failRest(results []Result, err error) []Result {
	if err == nil {
		return results
	}
	for i := range results {
		if results[i].Err == nil {
			results[i] = Result{Err: err}
		}
	}
	return results
}

func (p *plan) txn() store.Txn {
	var t store.Txn
	for guard := range p.guards {
		t.Compares = append(t.Compares, store.NotAfter(guard, p.at))
		t.Puts = append(t.Puts, store.KV{Key: guard})
	}
	for key := range p.fresh {
		t.Compares = append(t.Compares, store.Unchanged(key, 0))
	}
	for _, key := range slices.Sorted(maps.Keys(p.puts)) {
		t.Puts = append(t.Puts, store.KV{Key: key, Value: p.puts[key]})
	}
	t.Deletes = slices.Sorted(maps.Keys(p.gone))
	return t
}

func (r *Registry) planCreate(p *plan, in *selectors.Entry) (*selectors.Entry, error) {
	e := *in
	if err := r.validate(&e); err != nil {
		return nil, err
	}
	if have := p.similar(&e); have != nil {
		return have, ErrSimilar
	}
	if err := r.unique(&e); err != nil {
		return nil, err
	}
	number, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make an entry id: %w", err)
	}
	key := entryPrefix + number.String()
	if e.ID == "" {
		e.ID = number.String()
	} else {
		if p.get(e.ID) != nil {
			return nil, fmt.Errorf("%w entry ID %q", ErrDuplicate, e.ID)
		}
		p.fresh[idPrefix+e.ID] = true
		p.puts[idPrefix+e.ID] = []byte(key)
	}
	e.Revision, e.CreatedAt = 0, r.cfg.Now().UTC().Truncate(time.Second)
	p.made[e.SPIFFEID] = append(p.made[e.SPIFFEID], &e)
	return p.put(key, &e)
}

func (r *Registry) planUpdate(p *plan, u Update) (*selectors.Entry, error) {
	old := p.get(u.ID)
	if old == nil {
		return nil, ErrNotFound
	}
	e := *old
	if err := u.Change(&e); err != nil {
		return nil, err
	}
	e.ID, e.CreatedAt, e.Revision = old.ID, old.CreatedAt, old.Revision+1
	if err := r.validate(&e); err != nil {
		return nil, err
	}
	if err := r.unique(&e); err != nil {
		return nil, err
	}
	p.guards[guardKey(old.ParentID)] = true
	return p.put(p.key(u.ID), &e)
}

func (r *Registry) planDelete(p *plan, id string) (*selectors.Entry, error) {
	old := p.get(id)
	if old == nil {
		return nil, ErrNotFound
	}
	p.guards[guardKey(old.ParentID)] = true
	p.gone[p.key(id)] = true
	delete(p.puts, p.key(id))
	if entryPrefix+id != p.key(id) {
		p.gone[idPrefix+id] = true
	}
	p.now[id] = nil
	return old, nil
}

func (p *plan) put(key string, e *selectors.Entry) (*selectors.Entry, error) {
	value, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode the entry: %w", err)
	}
	p.guards[guardKey(e.ParentID)] = true
	p.puts[key], p.now[e.ID], p.keys[e.ID] = value, e, key
	return e, nil
}

func (p *plan) key(id string) string {
	if key, ok := p.keys[id]; ok {
		return key
	}
	return p.have.byID[id].key
}

func (p *plan) get(id string) *selectors.Entry {
	if e, ok := p.now[id]; ok {
		return e
	}
	if rec := p.have.byID[id]; rec != nil {
		return rec.entry
	}
	return nil
}

func (p *plan) similar(e *selectors.Entry) *selectors.Entry {
	if have := p.have.similar(e); have != nil {
		return have
	}
	set := e.SelectorSet()
	for _, o := range p.made[e.SPIFFEID] {
		if sameKind(o, e, set) {
			return o
		}
	}
	return nil
}

func guardKey(parent spiffeid.ID) string {
	sum := sha256.Sum256([]byte(parent.String()))
	return guardPrefix + hex.EncodeToString(sum[:])
}
