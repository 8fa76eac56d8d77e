// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

// How often an endpoint is asked: as it hints, within bounds.
const (
	defaultPoll  = 5 * time.Minute
	shortestPoll = time.Minute
	longestPoll  = 24 * time.Hour
	// spread is the part of an interval by which servers hold back at random, so that as a rule one
	// comes first and the others see its claim.
	spread = 0.1
	// parallel is how many endpoints one server asks at a time.
	parallel = 8
)

func (b *Bundle) pollInterval() time.Duration {
	if b == nil || b.RefreshHint == 0 {
		return defaultPoll
	}
	return min(max(b.RefreshHint, shortestPoll), longestPoll)
}

// Run fetches the bundles of all relationships when they are due, until ctx ends. Several servers
// share the work: whoever claims a fetch in the store does it.
func (r *Registry) Run(ctx context.Context) {
	var fetches sync.WaitGroup
	defer fetches.Wait()
	slots := make(chan struct{}, parallel)
	late := map[spiffeid.TrustDomain]float64{}
	for {
		r.mu.RLock()
		moved := r.moved
		r.mu.RUnlock()
		wait := longestPoll
		for td, rel := range r.active() {
			if _, ok := late[td]; !ok {
				late[td] = spread * rand.Float64()
			}
			left := r.dueIn(td, late[td])
			if left > 0 {
				wait = min(wait, left)
				continue
			}
			delete(late, td)
			if !r.claim(ctx, td) {
				wait = min(wait, shortestPoll) // another server's, or the store is away
				continue
			}
			fetches.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				if err := r.refresh(ctx, rel); err != nil && ctx.Err() == nil {
					r.cfg.Logger.Warn("a federated bundle can not be fetched; the known one goes on", "trust_domain", td.Name(), "url", rel.URL, "error", err)
				}
			})
			wait = min(wait, shortestPoll)
		}
		select {
		case <-ctx.Done():
			return
		case <-moved:
		case <-time.After(wait):
		}
	}
}

// active returns the relationships that count on this server.
func (r *Registry) active() map[spiffeid.TrustDomain]Relationship {
	out := map[spiffeid.TrustDomain]Relationship{}
	r.mu.RLock()
	for td, rec := range r.relationships {
		out[td] = rec.value
	}
	r.mu.RUnlock()
	for _, s := range r.cfg.Static {
		out[s.TrustDomain] = s
	}
	return out
}

// dueIn is how long to wait for the next fetch; late is in parts of the interval.
func (r *Registry) dueIn(td spiffeid.TrustDomain, late float64) time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	last, ok := r.polls[td]
	if !ok {
		return 0
	}
	interval := r.bundles[td].value.pollInterval()
	return last.value.Add(interval + time.Duration(late*float64(interval))).Sub(r.cfg.Now())
}

// claim tells the other servers that this one fetches now. It reports false when one of them was
// faster or the store does not answer.
func (r *Registry) claim(ctx context.Context, td spiffeid.TrustDomain) bool {
	value, err := json.Marshal(poll{At: r.cfg.Now().UTC()})
	if err != nil {
		return false
	}
	r.mu.RLock()
	compare := unchanged(r, r.polls, pollPrefix, td)
	r.mu.RUnlock()
	revision, err := r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{compare}, Puts: []store.KV{{Key: pollPrefix + td.Name(), Value: value}}})
	if err != nil {
		if !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
			r.cfg.Logger.Warn("federated bundles are not fetched while the store refuses writes", "trust_domain", td.Name(), "error", err)
		}
		return false
	}
	return r.seen(ctx, revision) == nil
}

// RefreshBundle fetches the bundle now. ErrNotFound: there is no relationship with the trust domain.
func (r *Registry) RefreshBundle(ctx context.Context, td spiffeid.TrustDomain) error {
	rel, ok := r.active()[td]
	if !ok {
		return fmt.Errorf("federation relationship with trust domain %q %w", td.Name(), ErrNotFound)
	}
	return r.refresh(ctx, rel)
}

// refresh fetches the bundle and stores it if it is news.
func (r *Registry) refresh(ctx context.Context, rel Relationship) error {
	fetched, err := r.fetch(ctx, rel)
	if err != nil {
		return fmt.Errorf("fetch the bundle of trust domain %q: %w", rel.TrustDomain.Name(), err)
	}
	news := false
	err = r.edit(ctx, func(t *store.Txn) error {
		stored := r.relationships[rel.TrustDomain]
		if stored.value == rel { // and must stay so, or the answer is nobody's
			t.Compares = append(t.Compares, unchanged(r, r.relationships, relationshipPrefix, rel.TrustDomain))
		} else if !r.static(rel) {
			return nil
		}
		known := r.bundles[rel.TrustDomain].value
		if known != nil && fetched.sequenced && fetched.Sequence < known.Sequence {
			return fmt.Errorf("%w than the known one: sequence number %d after %d; if its trust domain was set up anew, set its bundle with `spire-server bundle set`", ErrOlder, fetched.Sequence, known.Sequence)
		}
		if news = known == nil || !known.sameDocument(fetched); !news {
			return nil
		}
		return r.planBundle(t, fetched)
	})
	if err != nil {
		return err
	}
	r.logFetched(rel, fetched, news)
	return nil
}

func (b *Bundle) sameDocument(o *Bundle) bool {
	return b.Sequence == o.Sequence && b.RefreshHint == o.RefreshHint && b.Equal(o)
}

func (r *Registry) static(rel Relationship) bool {
	for _, s := range r.cfg.Static {
		if s == rel {
			return true
		}
	}
	return false
}

func (r *Registry) logFetched(rel Relationship, b *Bundle, news bool) {
	log := r.cfg.Logger.With("trust_domain", rel.TrustDomain.Name(), "url", rel.URL, "sequence", b.Sequence,
		"x509_authorities", len(b.X509), "jwt_authorities", len(b.JWT), "wit_authorities", len(b.WIT))
	switch {
	case !news:
		log.Debug("a federated bundle was fetched and is the known one")
	case b.empty():
		log.Warn("a federated bundle is empty now: nothing of that trust domain is trusted")
	default:
		log.Info("a federated bundle was fetched and has changed")
	}
}
