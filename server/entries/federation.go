// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// FederatedWith counts the entries that federate with the trust domain.
func (r *Registry) FederatedWith(td spiffeid.TrustDomain) int { return len(r.federated(td)) }

func (r *Registry) federated(td spiffeid.TrustDomain) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []string
	for _, rec := range r.replica.ordered {
		if slices.ContainsFunc(rec.entry.FederatesWith, names(td)) {
			ids = append(ids, rec.entry.ID)
		}
	}
	return ids
}

func names(td spiffeid.TrustDomain) func(string) bool {
	return func(name string) bool {
		named, err := spiffeid.TrustDomainFromString(name)
		return err == nil && named == td
	}
}

// Unlink takes the trust domain out of all entries that federate with it, or deletes those entries.
// The revision of what it changes rises, so that agents hear of it (SPIRE's does not).
func (r *Registry) Unlink(ctx context.Context, td spiffeid.TrustDomain, remove bool) error {
	results := batches(r.federated(td), func(ids []string) []Result {
		return r.write(ctx, len(ids), func(p *plan, i int) (*selectors.Entry, error) {
			if remove {
				return r.planDelete(p, ids[i])
			}
			return planUnlink(p, ids[i], td)
		})
	})
	for _, res := range results {
		if res.Err != nil && !errors.Is(res.Err, ErrNotFound) {
			return fmt.Errorf("take trust domain %q out of the entries: %w", td.Name(), res.Err)
		}
	}
	return nil
}

// planUnlink validates nothing: what was stored may stay, less one trust domain.
func planUnlink(p *plan, id string, td spiffeid.TrustDomain) (*selectors.Entry, error) {
	old := p.get(id)
	if old == nil {
		return nil, ErrNotFound
	}
	e := *old
	e.FederatesWith = slices.DeleteFunc(slices.Clone(old.FederatesWith), names(td))
	e.Revision++
	return p.put(p.key(id), &e)
}
