// SPDX-License-Identifier: Apache-2.0

package entries

import "context"

// Next waits for a change and returns it; the first Delta comes at once.
func (f *Feed) Next(ctx context.Context) (Delta, error) {
	for {
		select {
		case <-f.Changed():
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		}
		first := f.at == unsent
		if d, err := f.Take(); first || err != nil || !d.Empty() {
			return d, err
		}
	}
}

// SetGraves sets how many removals are waited for between sweeps, and how many are remembered.
func (r *Registry) SetGraves(every, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed.Every, r.removed.Most = every, most
}

// Graves is how many removals are remembered.
func (r *Registry) Graves() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.removed.Len()
}
