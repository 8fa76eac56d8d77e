// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
)

// ErrToken is a page token that no List returned.
var ErrToken = errors.New("could not parse token")

// Match compares an entry's set E with a requested set R (spire.api.types.SelectorMatch).
type Match int

// The values are those of the SPIRE API.
const (
	Exact    Match = iota // E = R
	Subset                // E ⊆ R
	Superset              // E ⊇ R
	Any                   // E ∩ R ≠ ∅
)

// Filter selects entries; all that is set must hold.
type Filter struct {
	SPIFFEID      spiffeid.ID // zero: any
	ParentID      spiffeid.ID // zero: any
	Selectors     selectors.Set
	SelectorMatch Match
	FederatesWith []string // names of trust domains
	FederateMatch Match
	Hint          string
	Downstream    bool // true: only downstream entries; false: all
}

// List returns the entries that pass the filter in creation order. With a page size it
// returns at most that many after the token, and the token for the next page, which is empty
// only when the page is: clients page until then.
func (r *Registry) List(f Filter, pageSize int, token string) ([]*selectors.Entry, string, error) {
	var after replica.Key
	if token != "" {
		var err error
		if after, err = uuid.Parse(token); err != nil {
			return nil, "", fmt.Errorf("%w %q", ErrToken, token)
		}
	}
	var out []*selectors.Entry
	next := ""
	r.walk(&f, after, func(n replica.Number) bool {
		out = append(out, r.replica.Entry(n))
		if pageSize > 0 {
			next = r.replica.Key(n).String()
		}
		return len(out) != pageSize
	})
	return out, next, nil
}

// Count returns how many entries pass the filter.
func (r *Registry) Count(f Filter) int {
	if f.everything() {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.replica.Len()
	}
	n := 0
	r.walk(&f, replica.Key{}, func(replica.Number) bool { n++; return true })
	return n
}

// ids returns the ids of the entries for which keep holds; keep is asked only about entries that
// have more than SPIFFE ID, parent, selectors and times, and shown only that.
func (r *Registry) ids(keep func(*selectors.Entry) bool) []string {
	var ids []string
	r.walk(&Filter{}, replica.Key{}, func(n replica.Number) bool {
		if !r.replica.Plain(n) {
			if e := r.replica.Rest(n); keep(e) {
				ids = append(ids, e.ID)
			}
		}
		return true
	})
	return ids
}

// stride is how many records are looked at before writers and other readers have their turn.
const stride = 8192

// walk calls yield with the records after a key that pass the filter, in creation order, until
// it returns false. It holds the lock for reading in yield, and not from first to last.
func (r *Registry) walk(f *Filter, after replica.Key, yield func(replica.Number) bool) {
	for more := true; more; {
		after, more = r.step(f, after, yield)
	}
}

// step is one stride of walk; it returns the key that it came to, and whether there is more.
func (r *Registry) step(f *Filter, after replica.Key, yield func(replica.Number) bool) (replica.Key, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	pattern := r.replica.Pattern(f.Selectors)
	if few, ok := r.few(f); ok {
		slices.SortFunc(few, func(a, b replica.Number) int {
			x, y := r.replica.Key(a), r.replica.Key(b)
			return bytes.Compare(x[:], y[:])
		})
		for _, n := range few {
			if key := r.replica.Key(n); bytes.Compare(key[:], after[:]) > 0 && r.passes(f, pattern, n) && !yield(n) {
				break
			}
		}
		return after, false
	}
	left := stride
	for n := range r.replica.After(after) {
		if left == 0 {
			return after, true
		}
		left--
		after = r.replica.Key(n)
		if r.passes(f, pattern, n) && !yield(n) {
			break
		}
	}
	return after, false
}

// few returns the records that the filter's SPIFFE ID or parent leaves over, if they are so few
// that sorting them is less than passing by all others.
func (r *Registry) few(f *Filter) ([]replica.Number, bool) {
	most := max(64, r.replica.Len()/16)
	if !f.SPIFFEID.IsZero() {
		if found, n := r.replica.Named(f.SPIFFEID); n < most {
			return slices.Collect(found), true
		}
	}
	if !f.ParentID.IsZero() {
		if found, n := r.replica.Below(f.ParentID); n < most {
			return slices.Collect(found), true
		}
	}
	return nil, false
}

func (f *Filter) everything() bool {
	return f.SPIFFEID.IsZero() && f.ParentID.IsZero() && f.Selectors == nil && f.plain()
}

// plain reports whether the filter asks nothing of what few entries have.
func (f *Filter) plain() bool { return f.FederatesWith == nil && f.Hint == "" && !f.Downstream }

func (r *Registry) passes(f *Filter, pattern replica.Pattern, n replica.Number) bool {
	switch {
	case !f.SPIFFEID.IsZero() && r.replica.SPIFFEID(n) != f.SPIFFEID,
		!f.ParentID.IsZero() && r.replica.ParentID(n) != f.ParentID:
		return false
	}
	if f.Selectors != nil {
		shared, size := r.replica.Common(n, pattern)
		if !matchCounts(f.SelectorMatch, size, len(f.Selectors), shared) {
			return false
		}
	}
	if f.plain() {
		return true
	}
	e := r.replica.Rest(n)
	return (f.Hint == "" || e.Hint == f.Hint) && (!f.Downstream || e.Downstream) &&
		(f.FederatesWith == nil || matchNames(f.FederateMatch, e.FederatesWith, f.FederatesWith))
}

// matchCounts compares an entry's set of size e with a requested one of size r, of which they
// share so many.
func matchCounts(m Match, e, r, shared int) bool {
	switch m {
	case Exact:
		return shared == e && shared == r
	case Subset:
		return e > 0 && shared == e
	case Superset:
		return shared == r
	case Any:
		return shared > 0
	}
	return false
}

func matchNames(m Match, e, r []string) bool {
	within := func(a, b []string) bool {
		return !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(b, x) })
	}
	switch m {
	case Exact:
		return within(e, r) && within(r, e)
	case Subset:
		return len(e) > 0 && within(e, r)
	case Superset:
		return within(r, e)
	case Any:
		return slices.ContainsFunc(e, func(x string) bool { return slices.Contains(r, x) })
	}
	return false
}
