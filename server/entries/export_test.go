// SPDX-License-Identifier: Apache-2.0

package entries

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
