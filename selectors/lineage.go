// SPDX-License-Identifier: Apache-2.0

package selectors

// deriveLineage emits the families `parent` and `ancestor`: who started this program.
//
// A step of lineage is an executed image, not a fork: a server that forks a hundred workers
// is one ancestor, and so is the shell that became something else by `exec`.
//
//	selector                 example                  evidence                                    does not prove
//	parent:sha256:<hex>      parent:sha256:9f86d0…    kernel lineage of an observed exec; digest   that the parent meant to: a parent can be
//	                                                  read while that image was running            made to start a program by its input
//	ancestor:sha256:<hex>    ancestor:sha256:9f86d0…  the same, for any ancestor (parent included) as parent; nothing of the order
//
// A seeded process (running before the sensor) has no parent selector: its real parent may
// have exited and been replaced by a reaper. Unknown digests and truncated ends yield nothing.
func deriveLineage(f *Facts, emit func(family, value string)) {
	for i, a := range f.Ancestors {
		if a.Executable.SHA256.IsZero() {
			continue
		}
		v := "sha256:" + a.Executable.SHA256.String()
		if i == 0 && f.Observed {
			emit("parent", v)
		}
		emit("ancestor", v)
	}
}
