// SPDX-License-Identifier: Apache-2.0

package selectors

import "strings"

// deriveCgroup emits `cgroup` and `systemd`.
//
//	selector                example                               evidence                         does not prove
//	cgroup:path:<path>      cgroup:path:/system.slice/pay.service  kernel record at connect         that systemd made it: root may make any path
//	systemd:id:<unit>       systemd:id:pay.service                 outermost .service or .scope of   as cgroup:path; SPIRE's name and meaning
//	                                                               that path
//	systemd:slice:<slice>   systemd:slice:system.slice             innermost .slice above the unit   as cgroup:path
func deriveCgroup(f *Facts, emit func(family, value string)) {
	if f.Cgroup.Path == "" {
		return
	}
	emit("cgroup", "path:"+f.Cgroup.Path)
	for _, path := range f.Cgroup.paths() {
		unit, slice := systemdUnit(path)
		if unit != "" {
			emit("systemd", "id:"+unit)
		}
		if slice != "" {
			emit("systemd", "slice:"+slice)
		}
		if unit+slice != "" {
			return
		}
	}
}

// systemdUnit reads the system manager's unit and slice out of a cgroup path
// (systemd.resource-control(5): slices nest, units are leaves of slices).
func systemdUnit(path string) (unit, slice string) {
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		switch {
		case strings.HasSuffix(part, ".slice"):
			slice = part
		case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
			return part, slice
		default:
			return "", slice
		}
	}
	return "", slice
}
