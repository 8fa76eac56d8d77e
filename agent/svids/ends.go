// SPDX-License-Identifier: Apache-2.0

package svids

import "time"

// FirstEnd returns when the first of the X.509- and WIT-SVIDs ends that the Manager holds; zero without any.
func (m *Manager) FirstEnd() (first time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.cache {
		if s.svid != nil && key.kind != JWT && (first.IsZero() || s.svid.NotAfter.Before(first)) {
			first = s.svid.NotAfter
		}
	}
	return first
}
