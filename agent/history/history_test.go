// SPDX-License-Identifier: Apache-2.0

package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
)

func delivery(i int) Delivery {
	return Delivery{Time: time.Date(2026, 11, 21, 0, 0, i, 0, time.UTC), SPIFFEID: "spiffe://example.org/w", Serial: fmt.Sprint(i), Entry: "e",
		Process: selectors.ProcessKey{BootID: "b", TGID: uint32(i), ExecID: 1}, SHA256: selectors.Digest{1}, Tier: "t1"}
}

// logs collects what a Log says.
type logs struct {
	*slog.Logger
	bytes.Buffer
}

func newLogs() *logs {
	l := &logs{}
	l.Logger = slog.New(slog.NewTextHandler(&l.Buffer, nil))
	return l
}

// written makes a history of n records in files of at most limit bytes and returns its folder and end.
func written(t *testing.T, n int, limit int64) (dir string, at Anchor) {
	t.Helper()
	dir = t.TempDir()
	log := newLogs()
	l, err := open(dir, limit, log.Logger)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		l.Record(delivery(i))
		if i%3 == 0 {
			l.flush()
		}
	}
	at.Count, at.Head = l.headNow()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Error(log.String())
	}
	return dir, at
}

func (l *Log) headNow() (uint64, selectors.Digest) {
	n, h := l.Head()
	return n, h
}

func (l *Log) must(t *testing.T, err error) *Log {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestChain(t *testing.T) {
	dir, at := written(t, 10, maxFile)
	s, err := Verify(dir, at)
	if err != nil || s.First != 1 || s.Last != 10 || s.Head != at.Head || s.Anchored != 1 || s.Torn != 0 || s.Until.Second() != 9 {
		t.Fatalf("%+v, %v", s, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	var r Record
	if err := json.Unmarshal(data[:bytes.IndexByte(data, '\n')], &r); err != nil || r.Number != 1 || !reflect.DeepEqual(r.Delivery, delivery(0)) {
		t.Errorf("%+v, %v", r, err)
	}
	if st, err := os.Stat(filepath.Join(dir, fileName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestEmpty(t *testing.T) {
	l, err := Open(t.TempDir(), newLogs().Logger)
	l.must(t, err)
	if n, h := l.Head(); n != 0 || h != [32]byte{} {
		t.Errorf("%d, %x", n, h)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if s, err := Verify(l.dir, Anchor{}); err != nil || s.Last != 0 || s.Anchored != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestEveryChangeIsFound changes each byte, and removes, doubles and swaps lines: all of it is found by
// the chain itself or by the last head that the TPM vouched for.
func TestEveryChangeIsFound(t *testing.T) {
	dir, at := written(t, 3, maxFile)
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := func(what string, changed []byte) {
		t.Helper()
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Verify(dir, at); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %+v, %v", what, s, err)
		}
	}
	for i := range data {
		changed := bytes.Clone(data)
		changed[i] ^= 1
		found(fmt.Sprintf("byte %d", i), changed)
	}
	lines := bytes.SplitAfter(data, []byte("\n"))[:3]
	for i := range lines {
		found(fmt.Sprintf("without record %d", i+1), bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil))
		found(fmt.Sprintf("record %d twice", i+1), bytes.Join(append(append([][]byte{}, lines[:i+1]...), lines[i:]...), nil))
		if i > 0 {
			swapped := append([][]byte{}, lines...)
			swapped[i], swapped[i-1] = swapped[i-1], swapped[i]
			found(fmt.Sprintf("records %d and %d swapped", i, i+1), bytes.Join(swapped, nil))
		}
	}
	found("no file", nil)
	forged, _ := written(t, 3, maxFile)
	l, err := Open(forged, newLogs().Logger)
	l.must(t, err).Record(delivery(99)) // another history that holds together
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := Verify(forged, Anchor{4, at.Head}); !errors.Is(err, ErrBroken) {
		t.Errorf("another history: %+v, %v", s, err)
	}
}

func TestRestart(t *testing.T) {
	dir, at := written(t, 4, maxFile)
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
	for cut := last; cut <= len(data); cut++ { // a crash at every byte of the last record
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		log := newLogs()
		l, err := Open(dir, log.Logger)
		l.must(t, err)
		want := uint64(3)
		if cut == len(data) {
			want = 4
		}
		if n, h := l.Head(); n != want || (want == 4 && selectors.Digest(h) != at.Head) {
			t.Fatalf("cut at %d: record %d", cut, n)
		}
		if said := strings.Contains(log.String(), "cut by a crash"); said != (cut > last && cut < len(data)) {
			t.Errorf("cut at %d of %d: %s", cut, len(data), log.String())
		}
		l.Record(delivery(50))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err := Verify(dir); err != nil || s.Last != want+1 {
			t.Fatalf("cut at %d: %+v, %v", cut, s, err)
		}
	}
}

func TestDamageIsPutAside(t *testing.T) {
	dir, _ := written(t, 4, maxFile)
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(`"serial":"1"`), []byte(`"serial":"7"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	log := newLogs()
	l, err := Open(dir, log.Logger)
	l.must(t, err)
	if n, _ := l.Head(); n != 2 || !strings.Contains(log.String(), "put aside") {
		t.Errorf("goes on after record %d: %s", n, log.String())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if found, err := filepath.Glob(path + ".broken-*"); err != nil || len(found) != 1 {
		t.Errorf("put aside: %v, %v", found, err)
	}
}

func TestRotation(t *testing.T) {
	dir, at := written(t, 40, 3000) // some 8 records in a file
	files, err := segments(dir)
	if err != nil || len(files) != oldFiles+1 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 4000 {
			t.Errorf("%s: %v", f, st.Size())
		}
	}
	s, err := Verify(dir, at, Anchor{1, selectors.Digest{1}})
	if err != nil || s.Last != 40 || s.First < 2 || s.Anchored != 1 || s.Before != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dir, at); !errors.Is(err, ErrBroken) {
		t.Errorf("a file is missing: %v", err)
	}
	// A crash between the two steps of a rotation leaves no newest file.
	dir, at = written(t, 20, 3000)
	if err := os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, fileName+".1")); err != nil {
		t.Fatal(err)
	}
	l, err := open(dir, 3000, newLogs().Logger)
	l.must(t, err)
	if n, h := l.headNow(); n != at.Count || h != at.Head {
		t.Errorf("goes on after record %d, want %d", n, at.Count)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFull: nothing is lost while the disk takes nothing, and Head speaks of what is there.
func TestDiskFull(t *testing.T) {
	dir, log := t.TempDir(), newLogs()
	l, err := Open(dir, log.Logger)
	l.must(t, err).Record(delivery(0))
	l.Head()
	good := l.file
	if l.file, err = os.OpenFile("/dev/full", os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	l.Record(delivery(1))
	if n, _ := l.Head(); n != 1 || !strings.Contains(log.String(), "can not be written") {
		t.Errorf("%d records on a full disk: %s", n, log.String())
	}
	l.disk.Lock()
	l.file = good
	l.disk.Unlock()
	if n, _ := l.Head(); n != 2 {
		t.Errorf("%d records after it was full", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := Verify(dir); err != nil || s.Last != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	l, err := open(dir, 20<<10, newLogs().Logger)
	l.must(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				l.Record(delivery(i), delivery(i))
				if i%10 == 0 {
					l.Head()
				}
			}
		})
	}
	wg.Wait()
	n, h := l.headNow()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := Verify(dir, Anchor{n, h}); err != nil || n != 800 || s.Anchored != 1 {
		t.Errorf("%d: %+v, %v", n, s, err)
	}
}

// TestWrittenSoon: a record is on disk within a moment although nobody asks.
func TestWrittenSoon(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, newLogs().Logger)
	l.must(t, err).Record(delivery(0))
	for deadline := time.Now().Add(5 * writeWithin); ; time.Sleep(20 * time.Millisecond) {
		if s, err := Verify(dir); err == nil && s.Last == 1 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzScan(f *testing.F) {
	var data []byte
	var at state
	for i := range 3 {
		line, err := json.Marshal(Record{at.count + 1, at.head, delivery(i)})
		if err != nil {
			f.Fatal(err)
		}
		data, at = append(append(data, line...), '\n'), at.after(line)
	}
	f.Add(data)
	f.Add(data[:len(data)-5])
	f.Add([]byte(`{"n":7}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := scan(bytes.NewReader(data), nil)
		if s.good+s.torn > int64(len(data)) || err != nil && !errors.Is(err, ErrBroken) {
			t.Fatalf("%+v, %v", s, err)
		}
		if err == nil && s.good+s.torn != int64(len(data)) {
			t.Errorf("%d bytes are not spoken of", int64(len(data))-s.good-s.torn)
		}
		again, err := scan(bytes.NewReader(data[:s.good]), nil)
		if err != nil || again.end != s.end || again.torn != 0 {
			t.Errorf("what is good is not: %+v, %v", again, err)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	l, err := Open(b.TempDir(), newLogs().Logger)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	d := delivery(1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%30000 == 0 {
			l.flush()
		}
		l.Record(d)
	}
}
