// SPDX-License-Identifier: Apache-2.0

package replica

// Held is how many places, selectors, lists and rests are kept.
func (r *Replica) Held() int {
	return r.byID.used + r.lists.selectors.table.used + r.lists.table.used + r.rests.table.used + len(r.aliases.filed) + len(r.aliases.under) + len(r.custom) + r.byKey.used + r.byKind.used
}
