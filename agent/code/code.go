// SPDX-License-Identifier: Apache-2.0

// Package code answers what a process executes besides its program: one digest over all the
// files that it mapped executable since it was executed (libraries, LD_PRELOAD, LD_AUDIT,
// dlopen).
//
// The list is the kernel's (T1). A file's content is read through the process's own mapping
// and counts only if the kernel says that nobody could write it: not open for writing when it
// was mapped, and not opened for writing since. A file that was unmapped again, one of too many,
// or one whose writes may go unseen (overlay, network, FUSE) leaves the whole unknown.
package code

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Process is one pinned process (agent/process).
type Process interface {
	OpenMapped() ([]*os.File, error)
}

// Files tells whether a file was opened for writing (bpf.Sensor).
type Files interface {
	FileState(fd int) (token, wgen uint64, err error)
}

// Reader computes digests of code, each file's once. It is safe for concurrent use.
type Reader struct {
	files Files

	mu      sync.Mutex
	digests map[state]selectors.Digest
}

// state is a content of a file, as the kernel tells contents apart.
type state struct{ token, wgen uint64 }

// maxDigests bounds the memory; 48 bytes each.
const maxDigests = 1 << 14

// New returns a Reader.
func New(files Files) *Reader { return &Reader{files: files, digests: map[state]selectors.Digest{}} }

// Read returns what the process executes besides the given program. Code whose Known is false
// tells nothing; an error says that the process could not be read.
func (r *Reader) Read(p Process, mapped record.Code, program record.File) (selectors.Code, error) {
	unknown := selectors.Code{Anonymous: mapped.AnonymousExec}
	if !mapped.Known || mapped.Overflow {
		return unknown, nil
	}
	want := map[state]bool{}
	for _, m := range mapped.Files {
		if m.Inode == program.Inode && m.Device == program.Device {
			continue
		}
		if m.Writers || m.Token == 0 {
			return unknown, nil
		}
		want[state{m.Token, m.WGen}] = true
	}
	digests, complete, err := r.digestsOf(p, want)
	if err != nil || !complete {
		return unknown, err
	}
	slices.SortFunc(digests, func(a, b selectors.Digest) int { return slices.Compare(a[:], b[:]) })
	all := sha256.New()
	for _, d := range digests {
		all.Write(d[:])
	}
	return selectors.Code{Known: true, Anonymous: mapped.AnonymousExec, Files: len(digests), Libraries: selectors.Digest(all.Sum(nil))}, nil
}

// digestsOf returns the digests of the wanted files; it is complete if all of them are still
// mapped and unwritten. It empties want.
func (r *Reader) digestsOf(p Process, want map[state]bool) (found []selectors.Digest, complete bool, err error) {
	if len(want) == 0 {
		return nil, true, nil
	}
	files, err := p.OpenMapped()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, false, err
	}
	for _, f := range files {
		now, ok := r.state(f)
		if !ok || !want[now] {
			continue
		}
		if !writesSeen(f) {
			return nil, false, nil
		}
		d, ok, err := r.digest(f, now)
		if err != nil {
			return nil, false, err
		}
		if ok {
			found = append(found, d)
			delete(want, now)
		}
	}
	return found, len(want) == 0, nil
}

// writesSeen reports whether nobody can write the file but by opening it here.
func writesSeen(f *os.File) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &fs) == nil && seen[uint64(fs.Type)]
}

func (r *Reader) state(f *os.File) (state, bool) {
	token, wgen, err := r.files.FileState(int(f.Fd()))
	return state{token, wgen}, err == nil
}

// digest returns the digest of the content; ok is false when it was written meanwhile.
func (r *Reader) digest(f *os.File, s state) (d selectors.Digest, ok bool, err error) {
	r.mu.Lock()
	d, ok = r.digests[s]
	r.mu.Unlock()
	if ok {
		return d, true, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return d, false, fmt.Errorf("read mapped code: %w", err)
	}
	if after, ok := r.state(f); !ok || after != s {
		return d, false, nil
	}
	d = selectors.Digest(h.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.digests) >= maxDigests {
		clear(r.digests)
	}
	r.digests[s] = d
	return d, true, nil
}
