// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"slices"
	"strings"
)

// Set is a canonical set: sorted by Compare, without duplicates. The nil Set is empty.
// Build one with NewSet; a Set is not changed once it is shared.
type Set []Selector

// NewSet returns the canonical set of the given selectors. It does not keep the argument.
func NewSet(ss ...Selector) Set {
	return canonical(slices.Clone(ss))
}

// canonical makes a Set of a slice that is not used otherwise.
func canonical(s []Selector) Set {
	slices.SortFunc(s, Selector.Compare)
	return Set(slices.Compact(s))
}

// Contains reports whether x is in the set.
func (s Set) Contains(x Selector) bool {
	_, ok := slices.BinarySearchFunc(s, x, Selector.Compare)
	return ok
}

// SubsetOf reports whether every selector of s is in o.
func (s Set) SubsetOf(o Set) bool {
	return len(s) <= len(o) && len(s.Missing(o)) == 0
}

// Missing returns the selectors of s that o lacks, in order.
func (s Set) Missing(o Set) Set {
	var missing Set
	i := 0
	for _, x := range s {
		for i < len(o) && o[i].Compare(x) < 0 {
			i++
		}
		if i == len(o) || o[i] != x {
			missing = append(missing, x)
		}
	}
	return missing
}

// Intersects reports whether the two sets share a selector.
func (s Set) Intersects(o Set) bool { return len(s.Missing(o)) < len(s) }

// Equal reports whether the two sets hold the same selectors.
func (s Set) Equal(o Set) bool { return slices.Equal(s, o) }

// String returns the selectors separated by a blank, for people.
func (s Set) String() string { return strings.Join(s.Strings(), " ") }

// Strings returns each selector as "type:value", in order.
func (s Set) Strings() []string {
	out := make([]string, len(s))
	for i, x := range s {
		out[i] = x.String()
	}
	return out
}
