// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// aliases are the entries below /spire/server: an agent has those whose selectors its node has.
// Each is filed under the one of its selectors under which the fewest were when it came, so the
// aliases of a node are found by one look-up for each of the node's selectors.
type aliases struct {
	filed map[uint32][]Number // by selector
	under map[Number]uint32
}

func newAliases() aliases {
	return aliases{filed: map[uint32][]Number{}, under: map[Number]uint32{}}
}

// add files a record by its selectors; one without any is nobody's.
func (a *aliases) add(n Number, members []uint32) {
	if len(members) == 0 {
		return
	}
	rarest := slices.MinFunc(members, func(x, y uint32) int { return len(a.filed[x]) - len(a.filed[y]) })
	a.filed[rarest] = append(a.filed[rarest], n)
	a.under[n] = rarest
}

func (a *aliases) remove(n Number) {
	selector, ok := a.under[n]
	if !ok {
		return
	}
	delete(a.under, n)
	all := a.filed[selector]
	at := slices.Index(all, n)
	all[at] = all[len(all)-1]
	if all = all[:len(all)-1]; len(all) == 0 {
		delete(a.filed, selector)
	} else {
		a.filed[selector] = all
	}
}

// holds reports whether a node with the pattern has all selectors of a record, at least one.
func (r *Replica) holds(node Pattern, n Number) bool {
	shared, size := r.Common(n, node)
	return size > 0 && shared == size
}

// Authorized finds what an agent is authorised for, as SPIRE does:
//
//	agent ──▶ entries whose parent it is ──▶ entries whose parent is one of their SPIFFE IDs ──▶ …
//	/spire/server ──▶ entries whose selectors the node has ("aliases", not returned themselves)
//	                    └──▶ entries whose parent is the alias's SPIFFE ID ──▶ …
//
// in no order. Time is in proportion to the answer, not to the entries or aliases there are.
func (r *Replica) Authorized(agent spiffeid.ID, node selectors.Set) []Number {
	var queue []uint32
	visited := map[uint32]bool{0: true, r.server: true}
	visit := func(p uint32) {
		if r.places.at(p).len[below] > 0 && !visited[p] {
			visited[p] = true
			queue = append(queue, p)
		}
	}
	if p := r.findPlace(agent); p != 0 {
		visit(p)
	}
	pattern := r.Pattern(node)
	for _, selector := range pattern {
		for _, n := range r.aliases.filed[selector] {
			if r.holds(pattern, n) {
				visit(r.records.at(n).places[named])
			}
		}
	}
	var found []Number
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		found = slices.Grow(found, int(r.places.at(parent).len[below]))
		for n := range r.along(below, parent) {
			found = append(found, n)
			visit(r.records.at(n).places[named])
		}
	}
	return found
}

// MayHold is Authorized for one record, walked the other way: from it up to the agent.
func (r *Replica) MayHold(agent spiffeid.ID, node selectors.Set, n Number) bool {
	pattern := r.Pattern(node)
	if r.records.at(n).places[below] == r.server {
		return false // an alias is not an identity
	}
	found := false
	r.climb(n, map[uint32]bool{}, func(p uint32) bool {
		found = r.places.at(p).id == agent
		return !found
	}, func(alias Number) bool {
		found = r.holds(pattern, alias)
		return !found
	})
	return found
}

// Holders says for whom a record may count: it calls parent with each ID that may be an agent
// above it, and alias with the selectors of each alias above it, or its own if it is one. They
// return whether to go on. Places in seen were climbed before and are left out.
func (r *Replica) Holders(n Number, seen map[uint32]bool, parent func(spiffeid.ID) bool, alias func(selectors.Set) bool) {
	r.climb(n, seen,
		func(p uint32) bool { return parent(r.places.at(p).id) },
		func(n Number) bool { return alias(r.lists.decode(r.lists.set(r.records.at(n).list))) })
}

func (r *Replica) climb(n Number, seen map[uint32]bool, parent func(uint32) bool, alias func(Number) bool) {
	for queue := []Number{n}; len(queue) > 0; queue = queue[1:] {
		p := r.records.at(queue[0]).places[below]
		switch {
		case p == r.server:
			if !alias(queue[0]) {
				return
			}
		case !seen[p]:
			seen[p] = true
			if !parent(p) {
				return
			}
			queue = slices.AppendSeq(queue, r.along(named, p))
		}
	}
}
