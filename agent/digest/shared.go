// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// shared remembers digests by inode, for as long as nothing was written to it.
//
// The proof: an inotify watch for writes is on the inode before it is read, by a caller that
// runs it, so that nobody can write meanwhile. To write it later, all its processes must
// end; to execute it again, all its writers must have let go of it, and the kernel queues
// close-after-write before that (fs/file_table.c: __fput). So when a process is known to have
// executed the inode, and the queue is read after that, a write is in the queue or did not
// happen.
//
// A watch pins its inode, until that is deleted or its file system unmounted: then the kernel
// takes the watch away and queues that it did (IN_IGNORED), before it uses the number again
// (fs/dcache.c: dentry_unlink_inode).
//
// inotify and not fanotify: the one tells of deletions along with writes, and needs no capability.
//
// A full queue says so and forgets everything.
type shared struct {
	mu      sync.Mutex
	inotify int
	files   map[fileKey]*file
	watches map[int32]fileKey
}

// fileKey is st_dev and st_ino.
type fileKey struct{ dev, ino uint64 }

// file is a content of a watched inode: a write makes another one of it.
type file struct {
	watch  int32
	digest selectors.Digest // zero: not read yet
}

// maxWatched bounds the inodes that the watches pin.
const maxWatched = 4096

func newShared() (*shared, error) {
	s := &shared{inotify: -1}
	if err := s.startAnew(); err != nil {
		return nil, fmt.Errorf("digests are not shared between processes of the same file, because the kernel does not tell of writes: %w", err)
	}
	return s, nil
}

// startAnew forgets everything, and the watches with it.
func (s *shared) startAnew() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	if s.inotify >= 0 {
		unix.Close(s.inotify)
	}
	s.inotify, s.files, s.watches = fd, map[fileKey]*file{}, map[int32]fileKey{}
	return nil
}

func (s *shared) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return unix.Close(s.inotify)
}

// digest returns the digest of f, which a process executes that the caller has pinned.
func (s *shared) digest(f *os.File, key fileKey) (selectors.Digest, error) {
	content, known, err := s.look(f, key)
	if err != nil || !known.IsZero() {
		return known, err
	}
	d, err := sum(f)
	if err != nil {
		return selectors.Digest{}, err
	}
	return d, s.keep(key, content, d)
}

// look returns what is known of the file after everything that was done to it until now;
// an unknown file gets its watch.
func (s *shared) look(f *os.File, key fileKey) (*file, selectors.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.drain(); err != nil {
		return nil, selectors.Digest{}, err
	}
	if known := s.files[key]; known != nil {
		return known, known.digest, nil
	}
	if len(s.files) >= maxWatched {
		if err := s.startAnew(); err != nil {
			return nil, selectors.Digest{}, err
		}
	}
	watch, err := unix.InotifyAddWatch(s.inotify, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.IN_MODIFY|unix.IN_CLOSE_WRITE)
	if err != nil {
		return nil, selectors.Digest{}, fmt.Errorf("watch the executable for writes: %w", err)
	}
	content := &file{watch: int32(watch)}
	s.files[key], s.watches[content.watch] = content, key
	return content, selectors.Digest{}, nil
}

// keep remembers a digest, if the file was not written since look.
func (s *shared) keep(key fileKey, content *file, d selectors.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.drain(); err != nil {
		return err
	}
	if s.files[key] == content {
		content.digest = d
	}
	return nil
}

// drain takes every event that is queued. With mu held.
func (s *shared) drain() error {
	var buf [4096]byte
	for {
		n, err := unix.Read(s.inotify, buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read inotify events: %w", err)
		case n == 0:
			return errors.New("read inotify events: there is none")
		}
		if err := s.apply(buf[:n]); err != nil {
			return err
		}
	}
}

// apply forgets the digests of files that were written, and the files that are gone.
func (s *shared) apply(events []byte) error {
	for len(events) > 0 {
		e, rest, err := parseEvent(events)
		if err != nil {
			return err
		}
		events = rest
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			return s.startAnew()
		}
		key, ok := s.watches[e.watch]
		switch {
		case !ok: // forgotten since
		case e.mask&unix.IN_IGNORED != 0:
			delete(s.watches, e.watch)
			delete(s.files, key)
		default:
			s.files[key] = &file{watch: e.watch}
		}
	}
	return nil
}

// event is a struct inotify_event (inotify(7)) without its name.
type event struct {
	watch int32
	mask  uint32
}

func parseEvent(b []byte) (e event, rest []byte, err error) {
	if len(b) < unix.SizeofInotifyEvent {
		return e, nil, fmt.Errorf("malformed inotify event: %d bytes", len(b))
	}
	size := unix.SizeofInotifyEvent + uint64(binary.NativeEndian.Uint32(b[12:]))
	if size > uint64(len(b)) {
		return e, nil, fmt.Errorf("malformed inotify event: %d of %d bytes", len(b), size)
	}
	e.watch, e.mask = int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
	return e, b[size:], nil
}
