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
func (r *replica) crawl(agent spiffeid.ID, node selectors.Set) (found records, parents map[spiffeid.ID]bool) {
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
	for _, rec := range r.byParent[server] {
		if set := rec.entry.SelectorSet(); len(set) > 0 && set.SubsetOf(node) {
			visit(rec.entry.SPIFFEID)
		}
	}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		for _, rec := range r.byParent[parent] {
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
	return found.inOrder()
}

// AuthorizedEntry returns the entry with the given id if the agent may hold it, or nil. It is
// Authorized for one entry, walked the other way: from the entry up to the agent.
func (r *Registry) AuthorizedEntry(agent spiffeid.ID, node selectors.Set, id string) *selectors.Entry {
	server, err := spiffeid.FromPath(agent.TrustDomain(), "/spire/server")
	if err != nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec := r.replica.byID[id]
	if rec == nil || rec.entry.ParentID == server {
		return nil // an alias is not an identity
	}
	seen := map[spiffeid.ID]bool{server: true, rec.entry.ParentID: true}
	queue := []spiffeid.ID{rec.entry.ParentID}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		if parent == agent {
			return rec.entry
		}
		for _, above := range r.replica.bySPIFFEID[parent] {
			e := above.entry
			if set := e.SelectorSet(); e.ParentID == server && len(set) > 0 && set.SubsetOf(node) {
				return rec.entry
			}
			if !seen[e.ParentID] {
				seen[e.ParentID] = true
				queue = append(queue, e.ParentID)
			}
		}
	}
	return nil
}
