// SPDX-License-Identifier: Apache-2.0

// Package digest answers what file a running process is: the SHA-256 digest of its
// executable, read through the process's own exe link and bound to one executed image.
//
// A digest holds for as long as the image runs, because the kernel refuses to open a running
// executable for writing (ETXTBSY). It is therefore remembered by exec id, never by path or
// inode. Where that rule does not hold it is not used:
//
//	memfd and other unlinked tmpfs files   a writer may still hold them open: no digest at all
//	overlayfs                              the layer below can be written: hashed every time
package digest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// Image is what the kernel recorded of the executable at execve.
type Image struct {
	// Inode is the inode number of the file that was executed.
	Inode uint64
	// Overlay says that the file lies on overlayfs, where the inode number and the content
	// that the kernel protects may differ from what stat shows.
	Overlay bool
	// Writable says that the running file may be changed in place (memfd): it has no digest.
	Writable bool
}

// Process is one pinned process image (agent/process).
type Process interface {
	Key() selectors.ProcessKey
	OpenExecutable() (*os.File, error)
	ExecutablePath() (string, error)
	Still() error
}

// ErrNoDigest says that the executable has no digest that could be relied on.
var ErrNoDigest = errors.New("executable has no sound digest")

// Hasher computes digests, each image once. It is safe for concurrent use.
type Hasher struct {
	mu    sync.Mutex
	byID  map[uint64]*result
	order []uint64 // exec ids in the order they came, for eviction
	limit int
}

type result struct {
	done chan struct{}
	exe  selectors.Executable
	err  error
}

// New returns a Hasher that remembers the digests of up to limit images.
func New(limit int) *Hasher {
	return &Hasher{byID: map[uint64]*result{}, limit: limit}
}

// Known returns the executable of an image that was hashed before. The image may be gone.
func (h *Hasher) Known(execID uint64) (selectors.Executable, bool) {
	h.mu.Lock()
	r := h.byID[execID]
	h.mu.Unlock()
	if r == nil {
		return selectors.Executable{}, false
	}
	select {
	case <-r.done:
		return r.exe, r.err == nil
	default:
		return selectors.Executable{}, false
	}
}

// Executable returns path, size and digest of the image that p runs. Callers that ask for
// the same image at the same time share one read of the file.
func (h *Hasher) Executable(ctx context.Context, p Process, img Image) (selectors.Executable, error) {
	if img.Writable {
		return selectors.Executable{}, fmt.Errorf("%w: it runs an unlinked memory file, whose content can change while it runs", ErrNoDigest)
	}
	if img.Overlay {
		return hash(p, img)
	}
	id := p.Key().ExecID
	h.mu.Lock()
	r, found := h.byID[id]
	if !found {
		r = &result{done: make(chan struct{})}
		h.put(id, r)
	}
	h.mu.Unlock()
	if !found {
		r.exe, r.err = hash(p, img)
		if r.err != nil {
			h.forget(id, r)
		}
		close(r.done)
	}
	select {
	case <-r.done:
		return r.exe, r.err
	case <-ctx.Done():
		return selectors.Executable{}, ctx.Err()
	}
}

func (h *Hasher) put(id uint64, r *result) {
	for len(h.byID) >= h.limit && len(h.order) > 0 {
		delete(h.byID, h.order[0])
		h.order = h.order[1:]
	}
	h.byID[id] = r
	h.order = append(h.order, id)
}

func (h *Hasher) forget(id uint64, r *result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID[id] == r {
		delete(h.byID, id)
	}
}

// hash reads the file that p's exe link leads to. The link is opened and re-checked by p, the
// inode must be the one that the kernel saw at execve, and the process must still run it
// after the last byte was read.
func hash(p Process, img Image) (selectors.Executable, error) {
	path, err := p.ExecutablePath()
	if err != nil && !errors.Is(err, process.ErrNoPath) {
		return selectors.Executable{}, err
	}
	f, err := p.OpenExecutable()
	if err != nil {
		return selectors.Executable{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("stat %s: %w", path, err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !img.Overlay && (!ok || sys.Ino != img.Inode) {
		return selectors.Executable{}, fmt.Errorf("%w: the exe link of process %d leads to inode %d, but it executed inode %d", ErrNoDigest, p.Key().TGID, sys.Ino, img.Inode)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("read %s: %w", path, err)
	}
	if err := p.Still(); err != nil {
		return selectors.Executable{}, err
	}
	return selectors.Executable{Path: path, SHA256: selectors.Digest(sum.Sum(nil)), Size: n}, nil
}
