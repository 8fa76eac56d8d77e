// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// crawl finds what an agent is authorised for, as SPIRE does:
//
//	agent ──▶ entries whose parent it is ──▶ entries whose parent is one of their SPIFFE IDs ──▶ …
//	/spire/server ──▶ entries whose selectors the node has ("aliases", not returned themselves)
//	                    └──▶ entries whose parent is the alias's SPIFFE ID ──▶ …
//
// It returns the entries in no order, and all parents it looked at: a change below any other
// parent changes nothing for this agent.
func (r *replica) crawl(agent spiffeid.ID, node selectors.Set) (found []*record, parents map[spiffeid.ID]bool) {
	server, err := spiffeid.FromPath(agent.TrustDomain(), "/spire/server")
	if err != nil {
		return nil, nil // a zero agent ID has no entries
	}
	parents = map[spiffeid.ID]bool{server: true, agent: true}
	queue := []spiffeid.ID{agent}
	visit := func(id spiffeid.ID) {
		if !parents[id] {
			parents[id] = true
			queue = append(queue, id)
		}
	}
	for rec := range r.byParent[server] {
		if set := rec.entry.SelectorSet(); len(set) > 0 && set.SubsetOf(node) {
			visit(rec.entry.SPIFFEID)
		}
	}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		for rec := range r.byParent[parent] {
			found = append(found, rec)
			visit(rec.entry.SPIFFEID)
		}
	}
	return found, parents
}

// Authorized returns the entries that the agent with the given node selectors may hold, in
// creation order.
func (r *Registry) Authorized(agent spiffeid.ID, node selectors.Set) []*selectors.Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	found, _ := r.replica.crawl(agent, node)
	set := make(recordSet, len(found))
	for _, rec := range found {
		set[rec] = struct{}{}
	}
	return set.inOrder()
}

// AuthorizedEntry returns the entry with the given id if the agent may hold it, or nil.
func (r *Registry) AuthorizedEntry(agent spiffeid.ID, node selectors.Set, id string) *selectors.Entry {
	return r.AuthorizedLookup(agent, node)(id)
}

// AuthorizedLookup is AuthorizedEntry for many ids: it crawls once.
func (r *Registry) AuthorizedLookup(agent spiffeid.ID, node selectors.Set) func(id string) *selectors.Entry {
	byID := map[string]*selectors.Entry{}
	r.mu.RLock()
	defer r.mu.RUnlock()
	found, _ := r.replica.crawl(agent, node)
	for _, rec := range found {
		byID[rec.entry.ID] = rec.entry
	}
	return func(id string) *selectors.Entry { return byID[id] }
}
