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
	return r.ids(func(e *selectors.Entry) bool { return slices.ContainsFunc(e.FederatesWith, names(td)) })
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
	ids := r.federated(td)
	unlink := func(e *selectors.Entry) error { // what was stored may stay: nothing is validated
		e.FederatesWith = slices.DeleteFunc(e.FederatesWith, names(td))
		return nil
	}
	results := r.writer.write(ctx, len(ids), func(i int) (op, error) {
		if remove {
			return r.planDelete(ids[i])
		}
		return r.planChange(ids[i], unlink)
	})
	for _, res := range results {
		if res.Err != nil && !errors.Is(res.Err, ErrNotFound) {
			return fmt.Errorf("take trust domain %q out of the entries: %w", td.Name(), res.Err)
		}
	}
	return nil
}
