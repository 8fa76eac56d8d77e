// SPDX-License-Identifier: Apache-2.0

package selectors

import "strconv"

// deriveUnix emits SPIRE's `unix` family, with its names and meaning.
//
//	selector                          example                      evidence                              does not prove
//	unix:uid:<n>                      unix:uid:1000                kernel record at connect              that no set-uid program was used to get there
//	unix:user:<name>                  unix:user:payments           uid + the host's user database        that the name means the same on another node
//	unix:gid:<n>                      unix:gid:1000                kernel record at connect              as unix:uid
//	unix:group:<name>                 unix:group:payments          gid + the host's group database       as unix:user
//	unix:supplementary_gid:<n>        unix:supplementary_gid:27    /proc of the pinned process           that the group was there at exec
//	unix:supplementary_group:<name>   unix:supplementary_group:x   the same + the group database         as unix:user
//	unix:path:<path>                  unix:path:/usr/bin/pay       exe link of the pinned process        content: any file can be mounted there
//	unix:sha256:<hex>                 unix:sha256:9f86d0…          content of the exe, bound to the exec what was loaded or written to memory later
func deriveUnix(f *Facts, emit func(family, value string)) {
	const family = "unix"
	c := &f.Credentials
	num := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	emit(family, "uid:"+num(c.UID))
	emit(family, "gid:"+num(c.GID))
	if c.User != "" {
		emit(family, "user:"+c.User)
	}
	if c.Group != "" {
		emit(family, "group:"+c.Group)
	}
	for _, g := range c.SupplementaryGroups {
		emit(family, "supplementary_gid:"+num(g.GID))
		if g.Name != "" {
			emit(family, "supplementary_group:"+g.Name)
		}
	}
	if f.Executable.Path != "" {
		emit(family, "path:"+f.Executable.Path)
	}
	if !f.Executable.SHA256.IsZero() {
		emit(family, "sha256:"+f.Executable.SHA256.String())
	}
}
