// SPDX-License-Identifier: Apache-2.0

package selectors

import "strconv"

// deriveIntegrity emits `integrity` and `code`: whether the process still is what was executed.
//
//	selector                        example                          evidence                               does not prove
//	integrity:clean                 integrity:clean                  nothing of the below happened, and     that the program has no holes of its own
//	                                                                 that is sure (T1)
//	integrity:unmodified            integrity:unmodified             not traced and not written, and that   that nobody read its keys
//	                                                                 is sure (T1)
//	integrity:memory-unwritten      integrity:memory-unwritten       not written, and that is sure (T1, T2) that no debugger changed its registers
//	integrity:traced                integrity:traced                 a debugger attached to it or to an     that it changed anything
//	                                                                 ancestor it inherited this from
//	integrity:memory-written        integrity:memory-written         another process wrote its memory       what
//	integrity:memory-read           integrity:memory-read            another process read or opened its     that it found a key
//	                                                                 memory, or was allowed to (T1)
//	integrity:descriptor-taken      integrity:descriptor-taken       pidfd_getfd took a descriptor          which
//	code:libraries:sha256:<hex>     code:libraries:sha256:77ad…      T1: digest over the sorted digests of  what the libraries do; order of loading
//	                                                                 all files that were mapped executable
//	code:libraries:count:<n>        code:libraries:count:4           the same                               –
//	code:no-anonymous-exec          code:no-anonymous-exec           T1: no memory became executable that   –
//	                                                                 is not a file's (no JIT, no injection)
//
// A flag is sticky and inherited: a tampered parent can prepare its child.
func deriveIntegrity(f *Facts, emit func(family, value string)) {
	i := f.Integrity
	for _, x := range []struct {
		set  bool
		name string
	}{
		{i.Traced, "traced"}, {i.MemoryWritten, "memory-written"}, {i.MemoryRead, "memory-read"}, {i.DescriptorTaken, "descriptor-taken"},
		{i.SeesWrites && !i.MemoryWritten, "memory-unwritten"},
		{i.SeesWrites && i.SeesTracing && !i.modified(), "unmodified"},
		{i.SeesAll && !i.modified() && !i.MemoryRead && !i.DescriptorTaken, "clean"},
	} {
		if x.set {
			emit("integrity", x.name)
		}
	}
	if !f.Code.Known {
		return
	}
	emit("code", "libraries:sha256:"+f.Code.Libraries.String())
	emit("code", "libraries:count:"+strconv.Itoa(f.Code.Files))
	if !f.Code.Anonymous {
		emit("code", "no-anonymous-exec")
	}
}

func (i Integrity) modified() bool { return i.Traced || i.MemoryWritten }
