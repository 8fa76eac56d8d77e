// SPDX-License-Identifier: Apache-2.0

package code

import (
	"errors"
	"fmt"
	"os"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// Script is a script as the kernel saw it at execve (T1).
type Script struct {
	// Path is the name given to execve.
	Path string
	// Token and WGen tell its content as Files does; a zero Token is unknown.
	Token, WGen uint64
	// FSMagic is the type of its file system (linux/magic.h).
	FSMagic uint64
}

// Executor is a pinned process that a script was started in (agent/process).
type Executor interface {
	OpenPath(path string, look func(process.Step) error) (*os.File, error)
	Still() error
}

// ErrNoScript says that a script has no digest that could be relied on.
var ErrNoScript = errors.New("script has no sound digest")

// maxPath is the length from which the sensor cuts a path.
const maxPath = 255

// Script returns path, size and digest of the script that was executed. The proof:
//
//   - Unwritten. The kernel looks at the script while it denies everybody to write it
//     (fs/exec.c: do_open_execat), so who writes it later must open it later, and that raises
//     the generation: through a descriptor, a mapping, truncate or an ioctl alike. The
//     generation of the file that is read here is the one of execve, before and after.
//     (ctime would not do: EXT4_IOC_MOVE_EXT changes a donor's content and leaves its ctime, and
//     so does a write through a mapping of a tmpfs file that was read first.)
//   - The one that is interpreted. The interpreter opens the path again, by itself, a moment
//     after the kernel did. So the path must lead to the very inode, on a way that only root
//     could have changed in between: absolute, each directory and link owned by root and
//     writable by root alone. In a user namespace everybody is root, so the caller asks
//     only for processes in the host's.
//
// Everything else is ErrNoScript: descriptors (/dev/fd/N, memfd), relative paths, scripts below
// /tmp or a home directory, overlay, network and FUSE file systems, whose content changes
// unseen. `#!/usr/bin/env python3` is two execve: the second is of a plain binary.
func (r *Reader) Script(p Executor, s Script) (selectors.Executable, error) {
	none := func(format string, args ...any) (selectors.Executable, error) {
		return selectors.Executable{}, fmt.Errorf("%w: "+format, append([]any{ErrNoScript}, args...)...)
	}
	switch {
	case s.Token == 0:
		return none("this tier does not see which file it is")
	case len(s.Path) >= maxPath || s.Path == "" || s.Path[0] != '/':
		return none("it was not executed by a short absolute path: %q", s.Path)
	case !seen[s.FSMagic]:
		return none("writes to its file system (%#x) are not all seen", s.FSMagic)
	}
	f, err := p.OpenPath(s.Path, ownedByRoot)
	if errors.Is(err, process.ErrPath) {
		return none("%w", err)
	} else if err != nil {
		return selectors.Executable{}, err
	}
	defer f.Close()
	want := state{s.Token, s.WGen}
	if now, ok := r.state(f); !ok || now != want {
		return none("%s is another file now, or was opened for writing since", s.Path)
	}
	exe := selectors.Executable{Path: s.Path}
	st, err := f.Stat()
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("stat %s: %w", s.Path, err)
	}
	exe.Size = st.Size()
	var ok bool
	if exe.SHA256, ok, err = r.digest(f, want); err != nil {
		return selectors.Executable{}, err
	} else if !ok {
		return none("%s was written while it was read", s.Path)
	}
	return exe, p.Still()
}

// ownedByRoot refuses what others than root can change.
func ownedByRoot(s process.Step) error {
	const link, kind, othersWrite = 0o120000, 0o170000, 0o022
	if s.UID != 0 || s.Mode&othersWrite != 0 && s.Mode&kind != link {
		return errors.New("can be changed by others than root")
	}
	return nil
}

// seen are the file systems whose files are written through this kernel's open alone.
var seen = map[uint64]bool{
	0xef53: true, 0x58465342: true, 0x9123683e: true, 0xf2f52010: true, // ext, xfs, btrfs, f2fs
	0x01021994: true, 0x858458f6: true, // tmpfs, ramfs
	0x73717368: true, 0xe0f5e1e2: true, // squashfs, erofs
}
