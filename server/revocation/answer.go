// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"context"
	"fmt"
	"slices"

	"github.com/assay-id/assay/server/store"
)

// answer revokes what this server signed and somebody asked for. In this order, so that each step can be repeated: the
// revocations, the lists that have them, the answers.
func (r *Registry) answer(ctx context.Context) error {
	if err := r.askRefused(ctx); err != nil {
		return err
	}
	ids, reqs := r.open()
	if len(ids) == 0 {
		return nil
	}
	scopes := make([]Scope, len(reqs))
	for i, req := range reqs {
		scopes[i] = req.Scope
	}
	found := make([][]Record, len(reqs))
	if err := r.journal.Find(scopes, func(i int, rec Record) { found[i] = append(found[i], rec) }); err != nil {
		return err
	}
	answers := make([]Answer, len(reqs))
	puts, err := r.plan(reqs, found, answers)
	if err != nil {
		return err
	}
	if err := r.put(ctx, puts); err != nil {
		return err
	}
	if err := r.publish(ctx); err != nil {
		return err
	}
	var done []store.KV
	for i, id := range ids {
		r.unlisted(found[i], &answers[i])
		kv, err := put(donePrefix+id+"/"+r.cfg.ServerID, answers[i])
		if err != nil {
			return err
		}
		done = append(done, kv)
	}
	if err := r.put(ctx, done); err != nil {
		return err
	}
	r.mu.Lock()
	for _, id := range ids {
		delete(r.again, id)
	}
	r.mu.Unlock()
	return nil
}

// open are the requests that this server has to look at.
func (r *Registry) open() (ids []string, reqs []Request) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, id := range sortedKeys(r.view.asked) {
		if _, done := r.view.done[id][r.cfg.ServerID]; !done || r.again[id] {
			ids, reqs = append(ids, id), append(reqs, r.view.asked[id])
		}
	}
	return ids, reqs
}

// plan fills in the answers and returns the revocations that are new.
func (r *Registry) plan(reqs []Request, found [][]Record, answers []Answer) (puts []store.KV, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	planned := map[string]bool{}
	more := map[string]int{} // by authority
	for i, records := range found {
		for _, rec := range records {
			rev := &Revocation{Record: rec}
			known := r.view.revoked[rec.Authority][rec.Serial] != nil || planned[rev.key()]
			if !known && len(r.view.revoked[rec.Authority])+more[rec.Authority] >= maxListed {
				answers[i].Error = tooMany(rec.Authority).Error()
				continue
			}
			answers[i].Revoked++
			if known {
				continue
			}
			planned[rev.key()] = true
			more[rec.Authority]++
			rev.from(reqs[i], r.cfg.Now())
			kv, err := put(rev.key(), rev)
			if err != nil {
				return nil, err
			}
			puts = append(puts, kv)
		}
	}
	return puts, nil
}

// unlisted says in an answer which lists could not be signed, or never will be by this server.
func (r *Registry) unlisted(records []Record, a *Answer) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var authorities []string
	for _, rec := range records {
		authorities = append(authorities, rec.Authority)
	}
	slices.Sort(authorities)
	for _, id := range slices.Compact(authorities) {
		if a.Error != "" {
			return
		}
		l := r.view.lists[id]
		if why := r.unsigned[id]; why != "" {
			a.Error = "no list says so, but our servers and agents know: " + why
		} else if l == nil || !r.cfg.Now().Before(l.list.NextUpdate) || !allIn(l, id, records) {
			a.Error = fmt.Sprintf("no list says so: the key of authority %s is gone; taint and revoke the authority", id)
		}
	}
}

// allIn reports whether the list of an authority has its records.
func allIn(l *list, authority string, records []Record) bool {
	return !slices.ContainsFunc(records, func(rec Record) bool { return rec.Authority == authority && !l.serials[rec.Serial] })
}
