// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
)

func openJournal(t testing.TB, dir string, now func() time.Time) *Journal {
	t.Helper()
	j, err := OpenJournal(dir, slog.New(slog.NewTextHandler(t.Output(), nil)), now)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func record(n int, end time.Time) Record {
	return Record{Authority: "ab01", Serial: fmt.Sprint(n), SPIFFEID: fmt.Sprintf("spiffe://example.org/w/%d", n%3), Node: fmt.Sprintf("spiffe://example.org/spire/agent/x/%d", n%2),
		Entry: fmt.Sprintf("e%d", n%5), SHA256: selectors.Digest{byte(n%7 + 1)}, NotAfter: end.UTC().Truncate(time.Second)}
}

func find(t *testing.T, j *Journal, s Scope) (serials []string) {
	t.Helper()
	if err := j.Find([]Scope{s}, func(_ int, r Record) { serials = append(serials, r.Serial) }); err != nil {
		t.Fatal(err)
	}
	return serials
}

// What Add returned for is found after a restart, by each field; what ended is not.
func TestJournal(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	clock := func() time.Time { return now }
	j := openJournal(t, dir, clock)
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			if err := j.Add(t.Context(), record(n, now.Add(time.Hour)), record(1000+n, now.Add(time.Minute))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check := func(j *Journal, ended bool) {
		t.Helper()
		for _, c := range []struct {
			scope Scope
			want  int
		}{
			{Scope{Serial: "7"}, 1}, {Scope{Node: "spiffe://example.org/spire/agent/x/0"}, 40}, {Scope{Entry: "e2"}, 16},
			{Scope{SHA256: selectors.Digest{1}}, 12}, {Scope{Node: "spiffe://example.org/spire/agent/x/1", Serial: "7"}, 1}, {Scope{Node: "spiffe://example.org/spire/agent/x/0", Serial: "7"}, 0},
			{Scope{Authority: "ab01"}, 80}, {Scope{Authority: "ab02"}, 0},
		} {
			got := find(t, j, c.scope)
			if ended {
				if c.want = 0; len(got) > 40 {
					t.Errorf("%+v after the end: %v", c.scope, got)
				}
				continue
			}
			if len(got) != c.want {
				t.Errorf("%+v: %d, want %d", c.scope, len(got), c.want)
			}
		}
	}
	check(j, false)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openJournal(t, dir, clock)
	check(j, false)
	now = now.Add(2 * time.Minute)
	check(j, true)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// A crash leaves part of the last record: it is cut off, and the records before it and after a restart are there.
func TestJournalTorn(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	whole := t.TempDir()
	j := openJournal(t, whole, clock)
	for n := range 3 {
		if err := j.Add(t.Context(), record(n, now.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(whole, activeName))
	if err != nil {
		t.Fatal(err)
	}
	last := len(data) / 3 * 2 // all have one length
	for cut := last; cut < len(data); cut++ {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, activeName), append(bytes.Clone(data[:cut]), make([]byte, cut%2)...), 0o600); err != nil {
			t.Fatal(err)
		}
		j := openJournal(t, dir, clock)
		if got := find(t, j, Scope{Authority: "ab01"}); len(got) != 2 {
			t.Fatalf("cut at %d: %v", cut, got)
		}
		if err := j.Add(t.Context(), record(9, now.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		if got := find(t, j, Scope{Authority: "ab01"}); len(got) != 3 || got[2] != "9" {
			t.Fatalf("cut at %d, after another: %v", cut, got)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A large file is sealed, read, and removed when the last of its SVIDs has ended.
func TestJournalSeals(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	j := openJournal(t, dir, func() time.Time { return now })
	defer j.Close()
	r := record(1, now.Add(time.Hour))
	r.Entry = strings.Repeat("e", 8<<10)
	for n := 0; n <= segmentSize/(8<<10); n += 256 {
		batch := make([]Record, 256)
		for i := range batch {
			batch[i] = r
			batch[i].Serial = fmt.Sprint(n + i)
		}
		if err := j.Add(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
	}
	files := func() int {
		names, err := j.sealed()
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	if files() == 0 || len(find(t, j, Scope{Serial: "3"})) != 1 {
		t.Fatalf("%d sealed files, serial 3 in %d", files(), len(find(t, j, Scope{Serial: "3"})))
	}
	if err := j.Prune(); err != nil || files() == 0 {
		t.Fatalf("pruned before the end: %v", err)
	}
	now = now.Add(time.Hour + 2*time.Second)
	if err := j.Prune(); err != nil || files() != 0 {
		t.Fatalf("%d sealed files after the end: %v", files(), err)
	}
	if err := j.Add(t.Context(), record(5, now.Add(time.Hour))); err != nil || len(find(t, j, Scope{Serial: "5"})) != 1 {
		t.Fatal("it does not go on", err)
	}
}

// A disk that takes no more: Add says so, nobody gets the SVID, and it goes on when there is room.
func TestJournalThatCanNotBeWritten(t *testing.T) {
	now := time.Now()
	j := openJournal(t, t.TempDir(), func() time.Time { return now })
	good := j.out
	broken, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	j.file.Lock()
	j.out = broken
	j.file.Unlock()
	if err := j.Add(t.Context(), record(1, now.Add(time.Hour))); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("on a full disk: %v", err)
	}
	j.file.Lock()
	j.out, j.dead = good, nil
	j.file.Unlock()
	if err := j.Add(t.Context(), record(2, now.Add(time.Hour))); err != nil {
		t.Error(err)
	}
	if got := find(t, j, Scope{Authority: "ab01"}); len(got) != 1 || got[0] != "2" {
		t.Errorf("found %v", got)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := j.Add(ctx, record(3, now.Add(time.Hour))); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzRecords(f *testing.F) {
	end := time.Unix(1_700_000_000, 0)
	one := record(1, end)
	bare := Record{Authority: "ab", Serial: "1", NotAfter: end.UTC()}
	for _, list := range [][]Record{{one}, {bare, one}, nil} {
		var data []byte
		for _, r := range list {
			var err error
			if data, err = appendRecord(data, &r); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(data)
	}
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		whole, err := each(bytes.NewReader(data), func(r *raw) {
			var err error
			rec := r.record()
			if again, err = appendRecord(again, &rec); err != nil {
				t.Fatal(err)
			}
		})
		if whole > int64(len(data)) || err == nil && whole != int64(len(data)) {
			t.Fatalf("%d of %d bytes: %v", whole, len(data), err)
		}
		var twice []byte
		if _, err := each(bytes.NewReader(again), func(r *raw) {
			rec := r.record()
			twice, _ = appendRecord(twice, &rec)
		}); err != nil || !bytes.Equal(again, twice) {
			t.Fatalf("what was read can not be read again: %v", err)
		}
	})
}

// BenchmarkSigning signs certificates, as many at once as a busy server does, without and with the journal.
func BenchmarkSigning(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: make([]byte, 20)}
	for _, journal := range []bool{false, true} {
		b.Run(fmt.Sprintf("journal=%t", journal), func(b *testing.B) {
			j := openJournal(b, b.TempDir(), time.Now)
			defer j.Close()
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
						b.Error(err)
					}
					if journal {
						if err := j.Add(b.Context(), record(1, template.NotAfter)); err != nil {
							b.Error(err)
						}
					}
				}
			})
		})
	}
}

// BenchmarkFind looks for one node among a million records.
func BenchmarkFind(b *testing.B) {
	j := openJournal(b, b.TempDir(), time.Now)
	defer j.Close()
	batch := make([]Record, 10_000)
	for n := range 100 {
		for i := range batch {
			batch[i] = record(n*len(batch)+i, time.Now().Add(time.Hour))
			batch[i].Node = fmt.Sprintf("spiffe://example.org/spire/agent/x/%d", (n*len(batch)+i)%10_000)
		}
		if err := j.Add(b.Context(), batch...); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		found := 0
		if err := j.Find([]Scope{{Node: "spiffe://example.org/spire/agent/x/17"}}, func(int, Record) { found++ }); err != nil || found != 100 {
			b.Fatal(found, err)
		}
	}
}
