// SPDX-License-Identifier: Apache-2.0

// Package history writes down which identity was delivered to which process, so that nobody can
// change it later unseen: each record names the hash of everything before it.
//
//	head₀ = 32 zero bytes        headₙ = SHA-256( headₙ₋₁ ‖ line n without its line feed )
//
// The records are data_dir/deliveries.log, one JSON object in a line; at 16 MiB the file becomes
// deliveries.log.1, and so on up to .3: the chain goes on from file to file. Who can write the
// files can write another chain. What it can not do is make the TPM take back what it signed: every
// quote that the server asks for carries number and head of the last record on disk (tpm.History).
// So records that were there at a quote can not be changed or removed without the server's record
// against it; what was delivered since the last quote can.
//
// A record is written within a second of its delivery, and before the next quote; a crash can lose
// records of that second. They are evidence for people, and nothing in Assay reads them.
package history

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/assay-id/assay/selectors"
)

// Delivery is one SVID that went to one process.
type Delivery struct {
	Time time.Time `json:"time"`
	// Kind is x509, jwt or wit; records of before there were others have none.
	Kind     string `json:"kind,omitempty"`
	SPIFFEID string `json:"spiffe_id"`
	// Serial is the certificate's in decimal, or the token's SHA-256 in hex. Entry is the id of the entry
	// that the SVID is for, Audience the token's.
	Serial   string   `json:"serial"`
	Entry    string   `json:"entry"`
	Audience []string `json:"audience,omitempty"`
	// Via is the SPIFFE ID of who received it on the process's behalf; empty is the process itself.
	Via     string               `json:"via,omitempty"`
	Process selectors.ProcessKey `json:"process"`
	// SHA256 is of the process's program.
	SHA256 selectors.Digest `json:"sha256"`
	Tier   string           `json:"tier"`
}

// Record is one line.
type Record struct {
	// Number counts from 1 and never begins again.
	Number uint64 `json:"n"`
	// Previous is the head before this record.
	Previous selectors.Digest `json:"previous"`
	Delivery
}

const (
	fileName    = "deliveries.log"
	maxFile     = 16 << 20
	oldFiles    = 3
	writeWithin = time.Second
	// maxWaiting bounds what waits for a disk that does not take it.
	maxWaiting = 1 << 16
)

// state is a place in the chain.
type state struct {
	count uint64
	head  selectors.Digest
}

func (s state) after(line []byte) state {
	h := sha256.New()
	h.Write(s.head[:])
	h.Write(line)
	return state{s.count + 1, selectors.Digest(h.Sum(nil))}
}

// Log is the history of one agent. Make one with Open; it is safe for concurrent use.
type Log struct {
	dir   string
	limit int64
	log   *slog.Logger

	mu      sync.Mutex // of what waits
	waiting []Delivery
	lost    int
	timer   *time.Timer // runs while anything waits

	disk     sync.Mutex // of what follows
	file     *os.File
	size     int64
	written  state
	synced   state
	lastFail string
}

// Open goes on with the history in dir, or begins one. A last line that a crash cut is removed and
// said. A file that does not hold together is put aside and said; the chain goes on from its last
// good record, which a server that saw more will notice.
func Open(dir string, log *slog.Logger) (*Log, error) {
	return open(dir, maxFile, log)
}

func open(dir string, limit int64, log *slog.Logger) (*Log, error) {
	l := &Log{dir: dir, limit: limit, log: log}
	if err := l.resume(); err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return l, nil
}

func (l *Log) path() string { return filepath.Join(l.dir, fileName) }

// resume finds the chain's end.
func (l *Log) resume() error {
	files, err := segments(l.dir)
	if err != nil {
		return err
	}
	var end state
	for i := len(files) - 1; i >= 0; i-- { // the newest one that holds a record
		s, err := scanFile(files[i], nil)
		if err != nil && !errors.Is(err, ErrBroken) {
			return err
		}
		if end = s.end; files[i] == l.path() {
			if err := l.repair(s, err); err != nil {
				return err
			}
		}
		if s.records > 0 {
			break
		}
	}
	l.written, l.synced = end, end
	return l.openFile()
}

// repair makes the newest file one that can be appended to.
func (l *Log) repair(s scanned, broken error) error {
	switch {
	case broken != nil:
		aside := fmt.Sprintf("%s.broken-%d", l.path(), time.Now().Unix())
		l.log.Error("the history of deliveries was changed or damaged; it is put aside and goes on from its last good record", "file", aside, "record", s.end.count, "error", broken)
		return os.Rename(l.path(), aside)
	case s.torn > 0:
		l.log.Warn("the history's last record was cut by a crash and is removed", "bytes", s.torn, "record", s.end.count+1)
		return os.Truncate(l.path(), s.good)
	}
	return nil
}

func (l *Log) openFile() error {
	f, err := os.OpenFile(l.path(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Record notes what was delivered just now. It does not wait for the disk.
func (l *Log) Record(list ...Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting)+len(list) > maxWaiting {
		l.lost += len(list)
		return
	}
	l.waiting = append(l.waiting, list...)
	if l.timer == nil && len(l.waiting) > 0 {
		l.timer = time.AfterFunc(writeWithin, l.flush)
	}
}

// Head returns the number of records and the chain's head, after it has put on disk all that was
// delivered. If the disk does not take it, they are those of what is on disk.
func (l *Log) Head() (count uint64, head [32]byte) {
	l.flush()
	l.disk.Lock()
	defer l.disk.Unlock()
	if l.synced != l.written && l.file != nil {
		if err := l.file.Sync(); err != nil {
			l.fails(err)
		} else {
			l.synced = l.written
		}
	}
	return l.synced.count, l.synced.head
}

// Close writes what waits.
func (l *Log) Close() error {
	l.Head()
	l.disk.Lock()
	defer l.disk.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// flush writes what waits; what can not be written goes on waiting.
func (l *Log) flush() {
	l.disk.Lock()
	defer l.disk.Unlock()
	l.mu.Lock()
	list, lost := l.waiting, l.lost
	l.waiting, l.lost = nil, 0
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.mu.Unlock()
	if lost > 0 {
		l.log.Error("deliveries are missing in the history: the disk did not take more", "missing", lost)
	}
	n, err := l.write(list)
	if err == nil {
		l.lastFail = ""
		return
	}
	l.fails(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(list[n:], l.waiting...)
	if l.timer == nil {
		l.timer = time.AfterFunc(writeWithin, l.flush)
	}
}

// write appends records and returns how many are in the file.
func (l *Log) write(list []Delivery) (done int, err error) {
	for done < len(list) {
		if l.size >= l.limit || l.file == nil {
			if err := l.rotate(); err != nil {
				return done, err
			}
		}
		var buf []byte
		next, n := l.written, done
		for ; n < len(list) && l.size+int64(len(buf)) < l.limit; n++ {
			line, err := json.Marshal(Record{next.count + 1, next.head, list[n]})
			if err != nil {
				return done, fmt.Errorf("encode a delivery: %w", err)
			}
			buf, next = append(append(buf, line...), '\n'), next.after(line)
		}
		if _, err := l.file.Write(buf); err != nil {
			// Half a line must not stay before the next one.
			return done, errors.Join(err, l.file.Truncate(l.size))
		}
		l.size += int64(len(buf))
		l.written, done = next, n
	}
	return done, nil
}

// rotate begins a new file, whose first record names the old one's head.
func (l *Log) rotate() error {
	if l.file != nil {
		if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
			return err
		}
		l.file = nil
		for i := oldFiles; i > 0; i-- {
			if err := os.Rename(old(l.path(), i-1), old(l.path(), i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return errors.Join(l.openFile(), syncDir(l.dir))
}

// old is the name of the file that is i files back.
func old(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fails says once that the disk does not work. With disk held.
func (l *Log) fails(err error) {
	if text := err.Error(); text != l.lastFail {
		l.lastFail = text
		l.log.Error("the history of deliveries can not be written; trying again", "error", err)
	}
}
