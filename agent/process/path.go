// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrPath: a path leads to no regular file, or on a way that is not followed.
var ErrPath = errors.New("the path leads to no file that can be told")

// Step is a directory or symbolic link on the way of a path.
type Step struct {
	UID, Mode uint32 // stat(2)
}

// OpenPath opens the regular file that a path names to the process now: an absolute path from
// its root, a relative one from its working directory and not out of that. look sees each
// directory and symbolic link on the way and may refuse it; nil refuses none.
//
// The path is somebody else's word, so nothing is followed that could hang or mean another
// file to the agent: only local file systems are entered, and neither FUSE nor /proc.
func (p *Process) OpenPath(name string, look func(Step) error) (*os.File, error) {
	w := walk{look: look, rooted: path.IsAbs(name)}
	start := "cwd"
	if w.rooted {
		start = "root"
	}
	base, err := os.OpenFile(p.proc(start), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		defer base.Close()
		w.base = int(base.Fd())
	}
	if err := p.after("opening the "+start+" directory", err); err != nil {
		return nil, err
	}
	f, err := w.open(name)
	if err := p.after(fmt.Sprintf("following %q", name), err); err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return f, nil
}

// walk follows a path name by name.
type walk struct {
	base   int
	rooted bool // base is the root: links may begin there again, and .. ends there
	look   func(Step) error

	done  []string // the way so far from base, without links
	links int
}

// maxLinks bounds a path as the kernel does (path_resolution(7)).
const maxLinks = 40

func (w *walk) open(name string) (*os.File, error) {
	rest := append([]string{"."}, strings.Split(name, "/")...)
	for len(rest) > 0 {
		name, rest = rest[0], rest[1:]
		if name == ".." {
			if len(w.done) == 0 && !w.rooted {
				return nil, fmt.Errorf("%w: it leads out of the working directory", ErrPath)
			}
			w.done = w.done[:max(len(w.done)-1, 0)]
			continue
		}
		if name == "" || name == "." && len(w.done) > 0 {
			continue
		}
		f, more, err := w.enter(name)
		if err != nil {
			return nil, err
		}
		if f != nil && len(rest) > 0 {
			f.Close()
			return nil, fmt.Errorf("%w: %s is no directory", ErrPath, name)
		}
		if f != nil {
			return f, nil
		}
		rest = append(more, rest...)
	}
	return nil, fmt.Errorf("%w: it is a directory", ErrPath)
}

// enter goes one name further. It returns the file if that is one, or what a link says.
func (w *walk) enter(name string) (f *os.File, link []string, err error) {
	at := path.Join(append(w.done[:len(w.done):len(w.done)], name)...)
	fd, err := unix.Openat2(w.base, at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrPath, at, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrPath, at, err)
	}
	if !local[fs.Type] {
		return nil, nil, fmt.Errorf("%w: %s is on a file system of type %#x", ErrPath, at, fs.Type)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFREG {
		f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY, 0)
		return f, nil, err
	}
	if kind != unix.S_IFDIR && kind != unix.S_IFLNK {
		return nil, nil, fmt.Errorf("%w: %s is neither a file nor a directory", ErrPath, at)
	}
	if w.look != nil {
		if err := w.look(Step{UID: st.Uid, Mode: st.Mode}); err != nil {
			return nil, nil, fmt.Errorf("%w: %s %w", ErrPath, at, err)
		}
	}
	if kind == unix.S_IFDIR {
		if name != "." {
			w.done = append(w.done, name)
		}
		return nil, nil, nil
	}
	link, err = w.follow(fd)
	return nil, link, err
}

// follow reads a symbolic link.
func (w *walk) follow(fd int) ([]string, error) {
	if w.links++; w.links > maxLinks {
		return nil, fmt.Errorf("%w: too many symbolic links", ErrPath)
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err != nil {
		return nil, fmt.Errorf("%w: reading a link: %w", ErrPath, err)
	}
	target := string(buf[:n])
	if path.IsAbs(target) {
		if !w.rooted {
			return nil, fmt.Errorf("%w: a link leads out of the working directory", ErrPath)
		}
		w.done = nil
	}
	return strings.Split(target, "/"), nil
}

// local are the file systems that answer without a network or another process (linux/magic.h).
var local = map[int64]bool{
	0xef53: true, 0x58465342: true, 0x9123683e: true, 0xf2f52010: true, 0x2fc12fc1: true, // ext, xfs, btrfs, f2fs, zfs
	0x01021994: true, 0x858458f6: true, 0x794c7630: true, // tmpfs, ramfs, overlay
	0x73717368: true, 0xe0f5e1e2: true, // squashfs, erofs
}
