// SPDX-License-Identifier: Apache-2.0

package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/assay-id/assay/selectors"
)

// ErrBroken is wrapped by every error that says that the history is not what was written.
var ErrBroken = errors.New("the history was changed")

// maxLine bounds a record, in bytes.
const maxLine = 64 << 10

// scanned is what one file holds.
type scanned struct {
	begin, end  state // before the first record and after the last good one
	records     int
	good, torn  int64 // bytes of whole records, and of a last line without its end
	first, last time.Time
}

// scan reads records as far as each follows from the one before; the first one may begin anywhere.
// each is told of every record that does, with the head after it; it may be nil.
func scan(r io.Reader, each func(Record, selectors.Digest)) (scanned, error) {
	var s scanned
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			s.torn = int64(len(line))
			return s, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return s, fmt.Errorf("%w: record %d has more than %d bytes", ErrBroken, s.end.count+1, maxLine)
		case err != nil:
			return s, err
		}
		text := line[:len(line)-1]
		var rec Record
		if err := json.Unmarshal(text, &rec); err != nil {
			return s, fmt.Errorf("%w: record %d can not be read: %w", ErrBroken, s.end.count+1, err)
		}
		if s.records == 0 {
			if rec.Number == 0 || (rec.Number == 1) != rec.Previous.IsZero() {
				return s, fmt.Errorf("%w: the first record is number %d after the head %s", ErrBroken, rec.Number, rec.Previous)
			}
			s.begin = state{rec.Number - 1, rec.Previous}
			s.end, s.first = s.begin, rec.Time
		}
		switch {
		case rec.Number != s.end.count+1:
			return s, fmt.Errorf("%w: record %d follows record %d", ErrBroken, rec.Number, s.end.count)
		case rec.Previous != s.end.head:
			return s, fmt.Errorf("%w: record %d, or one before it: it names the head %s, and what is there has %s", ErrBroken, s.end.count, rec.Previous, s.end.head)
		}
		s.end = s.end.after(text)
		s.records, s.good, s.last = s.records+1, s.good+int64(len(line)), rec.Time
		if each != nil {
			each(rec, s.end.head)
		}
	}
}

func scanFile(path string, each func(Record, selectors.Digest)) (scanned, error) {
	f, err := os.Open(path)
	if err != nil {
		return scanned{}, err
	}
	defer f.Close()
	s, err := scan(f, each)
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// segments returns the history's files, oldest first.
func segments(dir string) (files []string, err error) {
	for i := oldFiles; i >= 0; i-- {
		path := old(filepath.Join(dir, fileName), i)
		switch _, err := os.Lstat(path); {
		case err == nil:
			files = append(files, path)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return files, nil
}

// Anchor is what a TPM vouched for: after so many records the head was this.
type Anchor struct {
	Count uint64
	Head  selectors.Digest
}

// Summary is what Verify found.
type Summary struct {
	// First and Last are the numbers of the records that are there; Head is that after the last.
	// Records before First were dropped with their file, or removed from the oldest one.
	First uint64           `json:"first"`
	Last  uint64           `json:"last"`
	Head  selectors.Digest `json:"head"`
	Since time.Time        `json:"since"`
	Until time.Time        `json:"until"`
	// Anchored is how many of the given anchors it agrees with; Before how many are about records
	// that are no longer kept.
	Anchored int `json:"anchored"`
	Before   int `json:"before"`
	// Torn is the size of a last line that is not whole: being written, or cut by a crash.
	Torn int64 `json:"torn"`
}

// Verify reads the history in dir and computes its chain anew. An error that wraps ErrBroken says
// which record is not what it was, or which anchor it contradicts. Without anchors it shows that the
// history holds together, not that it is the one that was written.
func Verify(dir string, anchors ...Anchor) (Summary, error) {
	var sum Summary
	files, err := segments(dir)
	if err != nil {
		return sum, err
	}
	heads := map[uint64]selectors.Digest{0: {}}
	var end *state
	for i, path := range files {
		s, err := scanFile(path, func(r Record, head selectors.Digest) {
			for _, a := range anchors {
				if a.Count == r.Number {
					heads[r.Number] = head
				}
			}
		})
		switch {
		case err != nil:
			return sum, err
		case s.torn > 0 && i < len(files)-1:
			return sum, fmt.Errorf("%w: %s ends within a record", ErrBroken, path)
		case s.records == 0:
			sum.Torn = s.torn
			continue
		case end != nil && *end != s.begin:
			return sum, fmt.Errorf("%w: %s begins after record %d, and the file before it ends with record %d or another head", ErrBroken, path, s.begin.count, end.count)
		case end == nil:
			sum.First, sum.Since = s.begin.count+1, s.first
			heads[s.begin.count] = s.begin.head
		}
		end = &s.end
		sum.Last, sum.Head, sum.Until, sum.Torn = s.end.count, s.end.head, s.last, s.torn
	}
	if sum.First > 1 && len(files) <= oldFiles {
		return sum, fmt.Errorf("%w: it begins with record %d, and so few files mean that none were dropped yet", ErrBroken, sum.First)
	}
	return sum, sum.compare(heads, anchors)
}

func (s *Summary) compare(heads map[uint64]selectors.Digest, anchors []Anchor) error {
	for _, a := range anchors {
		head, known := heads[a.Count]
		switch {
		case known && head == a.Head:
			s.Anchored++
		case known:
			return fmt.Errorf("%w: the TPM vouched for the head %s after record %d, and it is %s", ErrBroken, a.Head, a.Count, head)
		case a.Count > s.Last:
			return fmt.Errorf("%w: the TPM vouched for %d records, and there are %d", ErrBroken, a.Count, s.Last)
		default:
			s.Before++
		}
	}
	return nil
}
