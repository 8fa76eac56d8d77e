// SPDX-License-Identifier: Apache-2.0

package selectors

// deriveEvidence emits `evidence`: how strong the other selectors are.
//
//	selector                 example               evidence                              does not prove
//	evidence:tier:<t>        evidence:tier:t2      hooks that were loaded when the        that the kernel itself is honest: that is what
//	                                               record was written; also emitted      the node's measured boot shows
//	                                               for every weaker tier, so that an
//	                                               entry can demand "at least"
//	evidence:observed        evidence:observed     the sensor saw this execve             that its ancestors were seen, too
//	evidence:seeded          evidence:seeded       the process was running before the     how it came to be
//	                                               sensor; at T3, without one, neither
//	evidence:digest:<by>     evidence:digest:ima   who computed the digest: hashed (the   –
//	                                               agent read the file), ima (so did the
//	                                               kernel, at execve), fsverity (the kernel
//	                                               checks what is read); all that hold
func deriveEvidence(f *Facts, emit func(family, value string)) {
	const family = "evidence"
	for t := TierT3; t <= f.Tier; t++ {
		emit(family, "tier:"+t.String())
	}
	switch {
	case f.Tier <= TierT3: // no sensor
	case f.Observed:
		emit(family, "observed")
	default:
		emit(family, "seeded")
	}
	if !f.Executable.SHA256.IsZero() {
		emit(family, "digest:hashed")
	}
	if f.Executable.IMA {
		emit(family, "digest:ima")
	}
	if !f.Executable.FSVerity.IsZero() {
		emit(family, "digest:fsverity")
	}
}
