// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
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
	after := ""
	if token != "" {
		if _, err := uuid.Parse(token); err != nil {
			return nil, "", fmt.Errorf("%w %q", ErrToken, token)
		}
		after = entryPrefix + token
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := r.replica.ordered
	from := sort.Search(len(all), func(i int) bool { return all[i].key > after })
	var out []*selectors.Entry
	next := ""
	for _, rec := range all[from:] {
		if !f.passes(rec.entry) {
			continue
		}
		out = append(out, rec.entry)
		if pageSize > 0 {
			next = rec.key[len(entryPrefix):]
			if len(out) == pageSize {
				break
			}
		}
	}
	return out, next, nil
}

// Count returns how many entries pass the filter.
func (r *Registry) Count(f Filter) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 0
	for _, rec := range r.replica.ordered {
		if f.passes(rec.entry) {
			n++
		}
	}
	return n
}

func (f *Filter) passes(e *selectors.Entry) bool {
	switch {
	case !f.SPIFFEID.IsZero() && e.SPIFFEID != f.SPIFFEID,
		!f.ParentID.IsZero() && e.ParentID != f.ParentID,
		f.Hint != "" && e.Hint != f.Hint,
		f.Downstream && !e.Downstream:
		return false
	}
	if f.Selectors != nil && !matchSets(f.SelectorMatch, e.SelectorSet(), f.Selectors) {
		return false
	}
	return f.FederatesWith == nil || matchNames(f.FederateMatch, e.FederatesWith, f.FederatesWith)
}

// matchSets compares an entry's or agent's set e with a requested set r.
func matchSets(m Match, e, r selectors.Set) bool {
	switch m {
	case Exact:
		return e.Equal(r)
	case Subset:
		return len(e) > 0 && e.SubsetOf(r)
	case Superset:
		return r.SubsetOf(e)
	case Any:
		return e.Intersects(r)
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
