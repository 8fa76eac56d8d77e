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
// The proof: a fanotify mark for writes is on the inode before it is read, by a caller that
// runs it, so that nobody can write meanwhile. To write it later, all its processes must
// end; to execute it again, all its writers must have let go of it, and the kernel queues
// close-after-write before that (fs/file_table.c: __fput). So when a process is known to have
// executed the inode, and the queue is read after that, a write is in the queue or did not
// happen. A mark pins its inode, so the number is not used again.
//
// A full queue says so and forgets everything.
type shared struct {
	mu    sync.Mutex
	fan   int
	files map[fileKey]*file
}

// fileKey is st_dev and st_ino.
type fileKey struct{ dev, ino uint64 }

type file struct {
	writes int // seen since it was marked
	digest selectors.Digest
}

// maxMarked bounds the inodes that the marks pin.
const maxMarked = 4096

func newShared() (*shared, error) {
	fan, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("digests are not shared between processes of the same file, because the kernel does not tell of writes (fanotify): %w", err)
	}
	return &shared{fan: fan, files: map[fileKey]*file{}}, nil
}

func (s *shared) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return unix.Close(s.fan)
}

// digest returns the digest of f, which a process executes that the caller has pinned.
func (s *shared) digest(f *os.File, key fileKey) (selectors.Digest, error) {
	entry, err := s.look(f, key)
	if err != nil {
		return selectors.Digest{}, err
	}
	if !entry.digest.IsZero() {
		return entry.digest, nil
	}
	d, err := sum(f)
	if err != nil {
		return selectors.Digest{}, err
	}
	return d, s.keep(key, entry.writes, d)
}

// look returns what is known of the file after everything that was written to it until now;
// an unknown file gets its mark.
func (s *shared) look(f *os.File, key fileKey) (file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.drain(); err != nil {
		return file{}, err
	}
	if known := s.files[key]; known != nil {
		return *known, nil
	}
	if len(s.files) >= maxMarked {
		if err := unix.FanotifyMark(s.fan, unix.FAN_MARK_FLUSH, 0, unix.AT_FDCWD, ""); err != nil {
			return file{}, fmt.Errorf("remove the marks of executables: %w", err)
		}
		clear(s.files)
	}
	if err := unix.FanotifyMark(s.fan, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd()))); err != nil {
		return file{}, fmt.Errorf("mark the executable: %w", err)
	}
	s.files[key] = &file{}
	return file{}, nil
}

// keep remembers a digest, if the file was not written since look.
func (s *shared) keep(key fileKey, writes int, d selectors.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.drain(); err != nil {
		return err
	}
	if known := s.files[key]; known != nil && known.writes == writes {
		known.digest = d
	}
	return nil
}

// drain takes every event that is queued. With mu held.
func (s *shared) drain() error {
	var buf [4096]byte
	for {
		n, err := unix.Read(s.fan, buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read fanotify events: %w", err)
		case n < unix.FAN_EVENT_METADATA_LEN:
			return fmt.Errorf("read fanotify events: %d bytes are no event", n)
		}
		if err := s.apply(buf[:n]); err != nil {
			return err
		}
	}
}

// apply forgets the digests of files that were written.
func (s *shared) apply(events []byte) error {
	for len(events) > 0 {
		e, rest, err := parseEvent(events)
		if err != nil {
			return err
		}
		events = rest
		if e.mask&unix.FAN_Q_OVERFLOW != 0 || e.fd < 0 {
			for _, f := range s.files {
				f.written()
			}
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(e.fd, &st)
		unix.Close(e.fd)
		if err != nil {
			return fmt.Errorf("stat a file that was written: %w", err)
		}
		if f := s.files[fileKey{st.Dev, st.Ino}]; f != nil {
			f.written()
		}
	}
	return nil
}

func (f *file) written() {
	f.writes++
	f.digest = selectors.Digest{}
}

// event is a struct fanotify_event_metadata (fanotify(7)).
type event struct {
	mask uint64
	fd   int
}

func parseEvent(b []byte) (e event, rest []byte, err error) {
	if len(b) < unix.FAN_EVENT_METADATA_LEN {
		return e, nil, fmt.Errorf("malformed fanotify event: %d bytes", len(b))
	}
	length, version := binary.NativeEndian.Uint32(b), b[4]
	if version != unix.FANOTIFY_METADATA_VERSION || length < unix.FAN_EVENT_METADATA_LEN || uint64(length) > uint64(len(b)) {
		return e, nil, fmt.Errorf("malformed fanotify event: version %d, %d of %d bytes", version, length, len(b))
	}
	e.mask = binary.NativeEndian.Uint64(b[8:])
	e.fd = int(int32(binary.NativeEndian.Uint32(b[16:])))
	return e, b[length:], nil
}
