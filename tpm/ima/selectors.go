// SPDX-License-Identifier: Apache-2.0

package ima

import "slices"

// Selectors are the values of the node selectors (type `tpm`) that an IMA log proves.
//
//	value                 evidence                                              does not prove
//	ima:no-violations     PCR 10 replay: no entry since boot is a violation     –
//	ima:allowlist:<name>  every file measured since boot is in that list        that all files that matter are measured: that is
//	                                                                            the IMA policy, from command line and kernel
//
// lists are the names of the lists for which Judge found nothing in any entry since the boot. The zero
// State yields nothing, nor does one without a boot aggregate.
func (s State) Selectors(lists ...string) []string {
	var all []string
	if s.BootAggregate.IsZero() {
		return nil
	}
	if s.Violations == 0 {
		all = append(all, "ima:no-violations")
	}
	for _, name := range slices.Sorted(slices.Values(lists)) {
		all = append(all, "ima:allowlist:"+name)
	}
	return all
}
