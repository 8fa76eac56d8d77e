// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/assay-id/assay/selectors"
)

var (
	// errToken is a page token that no List returned.
	errToken = errors.New("could not parse token")
	// errNoSelectors is a match with an empty set.
	errNoSelectors = errors.New("cannot list by empty selectors set")
)

// Match compares a node's set N with a requested set R (spire.api.types.SelectorMatch).
type Match int

// The values are those of the SPIRE API.
const (
	Exact    Match = iota // N = R
	Subset                // N ⊆ R, N not empty
	Superset              // N ⊇ R
	Any                   // N ∩ R ≠ ∅
)

// SelectorMatch asks for nodes by their selectors.
type SelectorMatch struct {
	Set   selectors.Set // not empty
	Match Match
}

func (m *SelectorMatch) holds(have selectors.Set) bool {
	switch m.Match {
	case Exact:
		return have.Equal(m.Set)
	case Subset:
		return len(have) > 0 && have.SubsetOf(m.Set)
	case Superset:
		return m.Set.SubsetOf(have)
	case Any:
		return have.Intersects(m.Set)
	}
	return false
}

// Filter selects nodes; all that is set must hold.
type Filter struct {
	AttestationType string         // empty: any
	State           State          // empty: any
	Banned          *bool          // whether the state is banned; nil: any
	CanReattest     *bool          // nil: any
	ExpiresBefore   time.Time      // of the SVID in use; zero: any
	Selectors       *SelectorMatch // nil: any
}

func (f *Filter) holds(n *Node) bool {
	return (f.AttestationType == "" || n.AttestationType == f.AttestationType) &&
		(f.State == "" || n.State == f.State) &&
		(f.Banned == nil || (n.State == StateBanned) == *f.Banned) &&
		(f.CanReattest == nil || n.CanReattest == *f.CanReattest) &&
		(f.ExpiresBefore.IsZero() || n.NotAfter.Before(f.ExpiresBefore)) &&
		(f.Selectors == nil || f.Selectors.holds(n.Selectors))
}

// List returns the nodes that pass the filter in order of their creation. With a page size it
// returns that many after the token (more only if they were created in the same nanosecond),
// and the token for the next page, which is empty only when the page is: clients page until then.
func (r *Registry) List(f Filter, pageSize int, token string) ([]*Node, string, error) {
	after := int64(-1 << 63)
	if token != "" {
		n, err := strconv.ParseInt(token, 10, 64)
		if err != nil {
			return nil, "", fmt.Errorf("%w %q", errToken, token)
		}
		after = n
	}
	if f.Selectors != nil && len(f.Selectors.Set) == 0 {
		return nil, "", errNoSelectors
	}
	out := r.nodes.all(func(n *Node) bool { return n.CreatedAt.UnixNano() > after && f.holds(n) })
	slices.SortFunc(out, func(a, b *Node) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID.String(), b.ID.String()))
	})
	if pageSize <= 0 || len(out) == 0 {
		return out, "", nil
	}
	end := min(pageSize, len(out))
	for end < len(out) && out[end].CreatedAt.Equal(out[end-1].CreatedAt) {
		end++
	}
	return out[:end], strconv.FormatInt(out[end-1].CreatedAt.UnixNano(), 10), nil
}

// Count returns how many nodes pass the filter.
func (r *Registry) Count(f Filter) (int, error) {
	nodes, _, err := r.List(f, 0, "")
	return len(nodes), err
}

// Standings returns how many nodes there are in each state.
func (r *Registry) Standings() map[string]int {
	out := map[string]int{string(StatePending): 0, string(StateAdmitted): 0, string(StateSuspended): 0, string(StateBanned): 0}
	r.nodes.all(func(n *Node) bool { out[string(n.State)]++; return false })
	return out
}
