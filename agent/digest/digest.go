// SPDX-License-Identifier: Apache-2.0

// Package digest answers what file a running process is: the SHA-256 digest of its
// executable, read through the process's own exe link and bound to one executed image.
//
//	once per image       a digest is remembered by exec id: the kernel refuses to open a running
//	                     executable for writing (ETXTBSY), so it holds as long as the image runs
//	once per inode       another image of the same inode gets it without reading, if a watch that
//	                     was set before the read saw no write since (shared.go)
//
// Where that rule does not hold it is not used:
//
//	memfd, unlinked tmpfs files         a writer may still hold them open: no digest at all
//	overlayfs, network and FUSE files   written behind the kernel's back: read every time
//	a kernel that lets running files be written (6.11)   read every time
package digest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// Image is what the kernel recorded of the executable at execve.
type Image struct {
	// Inode is the inode number of the file that was executed.
	Inode uint64
	// FSMagic is the type of its file system (linux/magic.h).
	FSMagic uint64
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

// Hasher computes digests. It is safe for concurrent use.
type Hasher struct {
	protected bool    // the kernel refuses to write running files
	shared    *shared // nil: digests are not shared between images

	mu     sync.Mutex
	recent images // by exec id
}

// New returns a Hasher that remembers the digests of between limit/2 and limit images. err
// tells why digests will be computed more often than they need be; the Hasher works.
func New(limit int) (h *Hasher, err error) {
	h = &Hasher{recent: images{half: limit / 2}, protected: runningFilesAreProtected()}
	if !h.protected {
		return h, errors.New("this kernel lets running programs be written, so every caller's program is read each time")
	}
	h.shared, err = newShared()
	return h, err
}

// Close lets the watches on files go.
func (h *Hasher) Close() error {
	if h.shared == nil {
		return nil
	}
	return h.shared.close()
}

// runningFilesAreProtected tries what an attacker would: to open a running program for
// writing. Only the refusal for that reason counts. Who may not write his own program asks the same count of the
// kernel (i_writecount) from its other side: a file that is open for writing is not executed.
func runningFilesAreProtected() bool {
	f, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	if errors.Is(err, syscall.EACCES) {
		err = executeWritten()
	}
	return errors.Is(err, syscall.ETXTBSY)
}

// executeWritten tries to execute an empty file, which can not succeed, while that is open for writing.
func executeWritten() error {
	fd, err := unix.MemfdCreate("empty", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	writer, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_WRONLY, 0) // only an opening by name counts
	if err != nil {
		return err
	}
	defer writer.Close()
	return execute(fd)
}

// execute is for files that can not be executed.
func execute(fd int) error {
	var empty byte
	argv := []*byte{&empty, nil}
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&argv[1])), unix.AT_EMPTY_PATH, 0)
	return errno
}

// stable are the file systems whose files change only through this kernel (linux/magic.h).
var stable = map[uint64]bool{
	0xef53: true, 0x58465342: true, 0x9123683e: true, 0xf2f52010: true, // ext, xfs, btrfs, f2fs
	0x01021994: true, 0x858458f6: true, // tmpfs, ramfs
	0x73717368: true, 0xe0f5e1e2: true, // squashfs, erofs
}

const overlayMagic = 0x794c7630

// Known returns the executable of an image that was hashed before. The image may be gone.
func (h *Hasher) Known(execID uint64) (selectors.Executable, bool) {
	h.mu.Lock()
	r := h.recent.get(execID)
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
	if !h.protected || !stable[img.FSMagic] {
		return read(p, img, nil)
	}
	id := p.Key().ExecID
	h.mu.Lock()
	r := h.recent.get(id)
	mine := r == nil
	if mine {
		r = &result{done: make(chan struct{})}
		h.recent.put(id, r)
	}
	h.mu.Unlock()
	if mine {
		r.exe, r.err = read(p, img, h.shared)
		if r.err != nil {
			h.mu.Lock()
			h.recent.drop(id, r)
			h.mu.Unlock()
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

// read digests the file that p's exe link leads to. The link is opened and re-checked by p,
// the inode must be the one that the kernel saw at execve, and the process must still run it
// at the end.
func read(p Process, img Image, known *shared) (exe selectors.Executable, err error) {
	if exe.Path, err = p.ExecutablePath(); err != nil && !errors.Is(err, process.ErrNoPath) {
		return selectors.Executable{}, err
	}
	f, err := p.OpenExecutable()
	if err != nil {
		return selectors.Executable{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("stat %s: %w", exe.Path, err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || (sys.Ino != img.Inode && img.FSMagic != overlayMagic) { // overlayfs shows another number
		return selectors.Executable{}, fmt.Errorf("%w: the exe link of process %d does not lead to the inode %d that it executed", ErrNoDigest, p.Key().TGID, img.Inode)
	}
	exe.Size = st.Size()
	if known == nil {
		exe.SHA256, err = sum(f)
	} else {
		exe.SHA256, err = known.digest(f, fileKey{sys.Dev, sys.Ino})
	}
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("read %s: %w", exe.Path, err)
	}
	return exe, p.Still()
}

func sum(f *os.File) (selectors.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return selectors.Digest{}, err
	}
	return selectors.Digest(h.Sum(nil)), nil
}

// images remembers results by exec id, in two generations: what was not used for half a
// generation is forgotten.
type images struct {
	half       int
	young, old map[uint64]*result
}

type result struct {
	done chan struct{}
	exe  selectors.Executable
	err  error
}

func (m *images) get(id uint64) *result {
	if r := m.young[id]; r != nil {
		return r
	}
	r := m.old[id]
	if r != nil {
		m.put(id, r)
	}
	return r
}

func (m *images) put(id uint64, r *result) {
	if m.young == nil || len(m.young) >= m.half {
		m.young, m.old = map[uint64]*result{}, m.young
	}
	m.young[id] = r
}

func (m *images) drop(id uint64, r *result) {
	for _, g := range []map[uint64]*result{m.young, m.old} {
		if g[id] == r {
			delete(g, id)
		}
	}
}
