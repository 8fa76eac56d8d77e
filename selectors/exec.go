// SPDX-License-Identifier: Apache-2.0

package selectors

// deriveExec emits `exec`: how the program was executed.
//
//	selector                     example                    evidence                              does not prove
//	exec:file:<kind>             exec:file:regular          kernel record at execve: regular,     anything about the content
//	                                                        deleted (no name left) or memory
//	exec:filesystem:<name>       exec:filesystem:overlay    type of the file system it lay on     who may write there
//	exec:set-id                  exec:set-id                set-user-ID, set-group-ID or file     –
//	                                                        capabilities changed the credentials
//	exec:no-set-id               exec:no-set-id             an execve that was seen, and did not  that an ancestor's did not
//	exec:script                  exec:script                the program interprets another file   which
//	exec:binary                  exec:binary                an execve that was seen, of the       that it reads no code: `python app.py` is
//	                                                        program itself                        a binary to the kernel
//	exec:script:sha256:<hex>     exec:script:sha256:9f86…   T1: the script's own inode, seen by   that nothing else is interpreted: who
//	                                                        the kernel before the interpreter,    starts it chooses its environment
//	                                                        unwritten since, on a path that only
//	                                                        root can change (agent/code)
//	exec:fsverity:sha256:<hex>   exec:fsverity:sha256:12…   the kernel checks every page that is  –
//	                                                        read against this root
func deriveExec(f *Facts, emit func(family, value string)) {
	const family = "exec"
	if f.Exec.FSMagic == 0 {
		return // nothing was recorded
	}
	switch {
	case f.Exec.MemoryFile:
		emit(family, "file:memory")
	case f.Exec.Deleted:
		emit(family, "file:deleted")
	default:
		emit(family, "file:regular")
	}
	if name := filesystems[f.Exec.FSMagic]; name != "" {
		emit(family, "filesystem:"+name)
	}
	if f.Exec.SetID {
		emit(family, "set-id")
	} else if f.Observed {
		emit(family, "no-set-id")
	}
	if f.Exec.Script {
		emit(family, "script")
		if d := f.Exec.ScriptFile.SHA256; !d.IsZero() {
			emit(family, "script:sha256:"+d.String())
		}
	}
	if !f.Exec.Script && f.Observed {
		emit(family, "binary")
	}
	if d := f.Executable.FSVerity; !d.IsZero() {
		emit(family, "fsverity:sha256:"+d.String())
	}
}

// filesystems names super_block.s_magic (linux/magic.h), by the names of mount(8).
var filesystems = map[uint64]string{
	0xef53: "ext", 0x58465342: "xfs", 0x9123683e: "btrfs", 0xf2f52010: "f2fs", 0x2fc12fc1: "zfs",
	0x01021994: "tmpfs", 0x858458f6: "ramfs", 0x794c7630: "overlay", 0x73717368: "squashfs", 0xe0f5e1e2: "erofs",
	0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb2", 0x65735546: "fuse", 0x01021997: "9p", 0x00c36400: "ceph",
}
