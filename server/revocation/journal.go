// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Journal is what this server has signed, on disk: records that are only ever appended to the file "active", which is
// sealed when it is large: renamed to the second in which the last of its SVIDs ends, and removed after that. There is
// nothing of it in memory; who looks for records reads the files.
type Journal struct {
	dir string
	log *slog.Logger
	now func() time.Time

	wake    chan struct{}
	stopped chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	waiting *group

	file sync.Mutex // guards what follows; the writer's, and of who reads
	out  *os.File
	size int64
	last int64 // when the last of its SVIDs ends, Unix seconds
	dead error // the file can not be written any more
}

// group is what is written and flushed together.
type group struct {
	bytes []byte
	last  int64
	done  chan struct{}
	err   error // once done
}

const (
	activeName  = "active"
	sealedEnd   = ".sealed"
	segmentSize = 16 << 20
)

// OpenJournal opens the journal in a folder, which is made with mode 0700. What a crash left of a last record is cut off:
// nobody was given that SVID.
func OpenJournal(dir string, log *slog.Logger, now func() time.Time) (*Journal, error) {
	j := &Journal{dir: dir, log: log, now: now, wake: make(chan struct{}, 1), stopped: make(chan struct{}), waiting: newGroup()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the journal of signed SVIDs: %w", err)
	}
	if err := j.openActive(); err != nil {
		return nil, fmt.Errorf("the journal of signed SVIDs: %w", err)
	}
	j.wg.Go(j.write)
	return j, nil
}

func newGroup() *group { return &group{done: make(chan struct{})} }

func (j *Journal) openActive() error {
	f, err := os.OpenFile(filepath.Join(j.dir, activeName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	j.out, j.last = f, 0
	size, err := each(f, func(r *raw) { j.last = max(j.last, int64(r.end)) })
	if errors.Is(err, errTorn) {
		j.log.Warn("the end of the journal of signed SVIDs was not whole and is cut off", "file", f.Name(), "kept_bytes", size)
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.size = size
	return nil
}

// each reads records, which are do's for the time of the call, and returns how many bytes the whole ones take. errTorn:
// something else follows.
func each(from io.Reader, do func(*raw)) (whole int64, err error) {
	in := bufio.NewReaderSize(from, 1<<18)
	var head [headBytes]byte
	body := make([]byte, maxRecord)
	var r raw
	for {
		if _, err := io.ReadFull(in, head[:]); err == io.EOF {
			return whole, nil
		} else if errors.Is(err, io.ErrUnexpectedEOF) {
			return whole, errTorn
		} else if err != nil {
			return whole, err
		}
		n := binary.LittleEndian.Uint32(head[:])
		if n > maxRecord {
			return whole, errTorn
		}
		if _, err := io.ReadFull(in, body[:n]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return whole, errTorn
		} else if err != nil {
			return whole, err
		}
		if crc32.Checksum(body[:n], castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
			return whole, errTorn
		}
		if err := r.read(body[:n]); err != nil {
			return whole, err
		}
		do(&r)
		whole += headBytes + int64(n)
	}
}

// Add returns when the records are on disk. Those who call at once share one flush.
func (j *Journal) Add(ctx context.Context, records ...Record) error {
	j.mu.Lock()
	g := j.waiting
	for i := range records {
		var err error
		if g.bytes, err = appendRecord(g.bytes, &records[i]); err != nil {
			j.mu.Unlock()
			return err
		}
		g.last = max(g.last, records[i].NotAfter.Unix())
	}
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stopped:
		return errors.New("the server is stopping")
	}
}

// write is the one that writes, until Close.
func (j *Journal) write() {
	for {
		select {
		case <-j.wake:
		case <-j.stopped:
			return
		}
		j.mu.Lock()
		g := j.waiting
		j.waiting = newGroup()
		j.mu.Unlock()
		if len(g.bytes) > 0 {
			g.err = j.flush(g)
		}
		close(g.done)
	}
}

func (j *Journal) flush(g *group) error {
	j.file.Lock()
	defer j.file.Unlock()
	if j.dead != nil {
		return j.dead
	}
	_, err := j.out.Write(g.bytes)
	if err == nil {
		err = unix.Fdatasync(int(j.out.Fd()))
	}
	if err != nil {
		err = fmt.Errorf("can not record what is signed: %w; make room or repair the disk of data_dir", err)
		if cut := j.cut(); cut != nil {
			j.dead = fmt.Errorf("%w (and restart the server: %w)", err, cut)
		}
		return err
	}
	j.size, j.last = j.size+int64(len(g.bytes)), max(j.last, g.last)
	if j.size >= segmentSize {
		if err := j.seal(); err != nil { // what was written is safe
			j.log.Error("the journal of signed SVIDs can not begin a new file; it goes on in the present one", "error", err)
		}
	}
	return nil
}

// cut removes what a write that failed has left.
func (j *Journal) cut() error {
	if err := j.out.Truncate(j.size); err != nil {
		return err
	}
	_, err := j.out.Seek(j.size, io.SeekStart)
	return err
}

func (j *Journal) seal() error {
	name := fmt.Sprintf("%d-%d%s", j.last, j.now().UnixNano(), sealedEnd)
	if err := os.Rename(j.out.Name(), filepath.Join(j.dir, name)); err != nil {
		return err
	}
	old := j.out
	if err := j.openActive(); err != nil {
		j.dead = fmt.Errorf("the journal of signed SVIDs: %w; repair the disk of data_dir and restart the server", err)
		return err
	}
	return old.Close()
}

// Find calls found with each record that fits a scope and whose SVID has not ended. It reads all that was added before.
func (j *Journal) Find(scopes []Scope, found func(scope int, r Record)) error {
	files, size, err := j.snapshot()
	defer func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}()
	if err != nil {
		return fmt.Errorf("read the journal of signed SVIDs: %w", err)
	}
	now := j.now().Unix()
	for i, f := range files {
		var in io.Reader = f
		if i == len(files)-1 {
			in = io.LimitReader(f, size)
		}
		_, err := each(in, func(r *raw) {
			if int64(r.end) <= now {
				return
			}
			for i, s := range scopes {
				if s.fits(r) {
					found(i, r.record())
				}
			}
		})
		if err != nil {
			return fmt.Errorf("read the journal of signed SVIDs, %s: %w", f.Name(), err)
		}
	}
	return nil
}

// snapshot opens all files; the last one is the active one, and of it size bytes are there.
func (j *Journal) snapshot() (files []*os.File, size int64, err error) {
	j.file.Lock()
	defer j.file.Unlock()
	names, err := j.sealed()
	if err != nil {
		return nil, 0, err
	}
	for _, name := range append(names, activeName) {
		f, err := os.Open(filepath.Join(j.dir, name))
		if err != nil {
			return files, 0, err
		}
		files = append(files, f)
	}
	return files, j.size, nil
}

func (j *Journal) sealed() (names []string, err error) {
	all, err := os.ReadDir(j.dir)
	for _, f := range all {
		if strings.HasSuffix(f.Name(), sealedEnd) {
			names = append(names, f.Name())
		}
	}
	return names, err
}

// Prune removes the files whose SVIDs have all ended.
func (j *Journal) Prune() error {
	j.file.Lock()
	defer j.file.Unlock()
	names, err := j.sealed()
	if err != nil {
		return fmt.Errorf("the journal of signed SVIDs: %w", err)
	}
	for _, name := range names {
		text, _, _ := strings.Cut(name, "-")
		last, err := strconv.ParseInt(text, 10, 64)
		if err != nil || j.now().Unix() <= last {
			continue // a name that is not ours stays
		}
		if err := os.Remove(filepath.Join(j.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the journal of signed SVIDs: %w", err)
		}
	}
	return nil
}

// Close ends the journal. Add must not be called any more.
func (j *Journal) Close() error {
	close(j.stopped)
	j.wg.Wait()
	return j.out.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
