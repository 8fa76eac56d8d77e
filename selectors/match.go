// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"slices"
	"strings"
)

// Index answers which entries a set of selectors satisfies, in time proportional to the
// entries that share the process's rarest-looking selectors, not to all entries.
//
// Each entry is filed under one of its own selectors, the one that the fewest entries were
// filed under when it came. An entry matches only if that selector is in the process's set,
// so one look-up per selector of the process finds every candidate.
//
// An Index is not safe for concurrent use with a writer. The zero Index is ready.
type Index struct {
	filed map[Selector][]*indexed
	byID  map[string]*indexed
}

type indexed struct {
	entry *Entry
	set   Set
	under Selector
}

// Len returns the number of entries.
func (x *Index) Len() int { return len(x.byID) }

// Get returns the entry with the given id, or nil.
func (x *Index) Get(id string) *Entry {
	if e := x.byID[id]; e != nil {
		return e.entry
	}
	return nil
}

// Put adds the entry or replaces the one with the same ID. An entry without selectors
// matches nothing. The index keeps the pointer; the entry must not change any more.
func (x *Index) Put(e *Entry) {
	x.Delete(e.ID)
	if x.byID == nil {
		x.byID, x.filed = map[string]*indexed{}, map[Selector][]*indexed{}
	}
	in := &indexed{entry: e, set: e.SelectorSet()}
	x.byID[e.ID] = in
	if len(in.set) == 0 {
		return
	}
	in.under = slices.MinFunc(in.set, func(a, b Selector) int { return len(x.filed[a]) - len(x.filed[b]) })
	x.filed[in.under] = append(x.filed[in.under], in)
}

// Delete removes the entry with the given id, if there is one.
func (x *Index) Delete(id string) {
	in := x.byID[id]
	if in == nil {
		return
	}
	delete(x.byID, id)
	if len(in.set) == 0 {
		return
	}
	rest := slices.DeleteFunc(x.filed[in.under], func(o *indexed) bool { return o == in })
	if len(rest) == 0 {
		delete(x.filed, in.under)
	} else {
		x.filed[in.under] = rest
	}
}

// Match returns the entries all of whose selectors are in have, ordered by ID.
func (x *Index) Match(have Set) []*Entry {
	var out []*Entry
	for _, s := range have {
		for _, in := range x.filed[s] {
			if in.set.SubsetOf(have) {
				out = append(out, in.entry)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Entry) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Near is an entry that does not match, and what it lacks.
type Near struct {
	Entry   *Entry
	Missing Set
}

// Nearest returns up to n entries that do not match, those first that were most likely meant for
// such a process: what `assay explain` shows. It visits every entry.
func (x *Index) Nearest(have Set, n int) []Near {
	var out []Near
	score := map[string]int{}
	for id, in := range x.byID {
		if missing := in.set.Missing(have); len(missing) > 0 {
			out = append(out, Near{in.entry, missing})
			score[id] = affinity(in.set, missing)
		}
	}
	slices.SortFunc(out, func(a, b Near) int {
		if c := score[b.Entry.ID] - score[a.Entry.ID]; c != 0 {
			return c
		}
		return strings.Compare(a.Entry.ID, b.Entry.ID)
	})
	return out[:min(n, len(out))]
}

// affinity is higher the more an entry has in common with a process: what names a program or a
// unit counts as four, a user as two, anything else as one; each missing selector counts
// against it.
func affinity(all, missing Set) int {
	score := -len(missing)
	for _, s := range all.Missing(missing) { // those that the process has
		switch kind, _, _ := strings.Cut(s.Value, ":"); {
		case kind == "sha256", kind == "path", kind == "id":
			score += 4
		case s.Type == "unix" && (kind == "uid" || kind == "user"):
			score += 2
		default:
			score++
		}
	}
	return score
}

// All calls yield for every entry, in no order, until it returns false.
func (x *Index) All(yield func(*Entry) bool) {
	for _, in := range x.byID {
		if !yield(in.entry) {
			return
		}
	}
}
