// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// TestMain lets the test binary be a program that says hello and waits.
func TestMain(m *testing.M) {
	if os.Getenv("ASSAY_DIGEST_ROLE") == "wait" {
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child runs the program at path; ok is false when its file has a writer.
func child(t *testing.T, path string) (pid int, stop func(), ok bool) {
	t.Helper()
	cmd := exec.Command(path)
	cmd.Env = []string{"ASSAY_DIGEST_ROLE=wait"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.ETXTBSY) {
		return 0, nil, false
	} else if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func() { in.Close(); _ = cmd.Wait() }, true
}

// real is a running program; that it is pinned is not this package's matter.
type real struct {
	pid int
	id  uint64
}

func (r *real) Key() selectors.ProcessKey {
	return selectors.ProcessKey{TGID: uint32(r.pid), ExecID: r.id}
}
func (r *real) ExecutablePath() (string, error) {
	return os.Readlink("/proc/" + strconv.Itoa(r.pid) + "/exe")
}
func (r *real) OpenExecutable() (*os.File, error) {
	return os.Open("/proc/" + strconv.Itoa(r.pid) + "/exe")
}
func (r *real) Still() error { return nil }

// Two writers change a program in every way that a file can be changed while it is executed
// again and again. No digest may be of another content than the one that runs.
func TestSharedDigestIsNeverStale(t *testing.T) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	tail := int64(len(exe)+4095) &^ 4095
	if err := os.WriteFile(path, append(exe, make([]byte, tail+4096-int64(len(exe)))...), 0o755); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	h := hasher(t, 1<<12)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for seed := range uint64(2) {
		writers.Go(func() { scribble(path, tail, seed, stop) })
	}
	changed, hits := 0, 0
	var last selectors.Digest
	for id := uint64(1); id <= 150; {
		pid, end, ok := child(t, path)
		if !ok {
			continue // a writer was at it
		}
		p := &real{pid: pid, id: id}
		want, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/exe")
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		known := h.shared.files[fileKey{st.Dev, st.Ino}]
		hadOne := known != nil && !known.digest.IsZero()
		got, err := h.Executable(t.Context(), p, Image{Inode: st.Ino, FSMagic: uint64(fs.Type)})
		end()
		if err != nil {
			t.Fatal(err)
		}
		if got.SHA256 != sha256.Sum256(want) {
			t.Fatalf("image %d: a digest of other content", id)
		}
		if got.SHA256 != last {
			changed++
		} else if hadOne {
			hits++
		}
		last = got.SHA256
		id++
	}
	close(stop)
	writers.Wait()
	t.Logf("150 images, content changed %d times, digest shared %d times", changed, hits)
	if changed < 10 {
		t.Errorf("the writers changed the file only %d times: the test shows nothing", changed)
	}
}

// scribble changes the padding behind the program until stop.
func scribble(path string, tail int64, seed uint64, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(seed, 7))
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // it runs
		}
		v := []byte{byte(r.Int()), byte(r.Int())}
		off := tail + int64(r.IntN(4000))
		switch r.IntN(4) {
		case 0:
			_, _ = f.WriteAt(v, off)
		case 1, 2: // a mapping, which outlives the descriptor in one of the cases
			m, err := unix.Mmap(int(f.Fd()), tail, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err == nil {
				f.Close()
				copy(m[off-tail:], v)
				_ = unix.Munmap(m)
			}
		case 3:
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 2)
			_, _ = f.WriteAt(v, off)
		}
		f.Close()
	}
}

func TestSecondImageIsNotRead(t *testing.T) {
	p, img := program(t, "x")
	h := hasher(t, 10)
	first, err := h.Executable(t.Context(), p, img)
	if err != nil {
		t.Fatal(err)
	}
	// The content is changed behind the watch's back, which shows whether it is read again.
	key := fileKey{}
	for key = range h.shared.files {
	}
	h.shared.files[key].digest = selectors.Digest{7}
	p.id = 2
	if second, err := h.Executable(t.Context(), p, img); err != nil || second.SHA256 != (selectors.Digest{7}) || second.Size != first.Size {
		t.Errorf("got %+v, %v", second, err)
	}
	if err := os.WriteFile(p.path, []byte("y"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.id = 3
	if third, err := h.Executable(t.Context(), p, img); err != nil || third.SHA256 != sha256.Sum256([]byte("y")) {
		t.Errorf("after a write: %+v, %v", third, err)
	}
}

// A file is deleted and another one gets its inode number, as ext4 and others hand them out at once.
func TestDeletedFileIsForgotten(t *testing.T) {
	h := hasher(t, 100)
	path := filepath.Join(t.TempDir(), "program")
	for i := range 20 {
		want := sha256.Sum256([]byte{byte(i)})
		if err := os.WriteFile(path, []byte{byte(i)}, 0o700); err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		exe, err := h.Executable(t.Context(), &running{id: uint64(i + 1), path: path}, Image{Inode: st.Ino, FSMagic: 0xef53})
		if err != nil || exe.SHA256 != want {
			t.Errorf("round %d, inode %d: %v, %v", i, st.Ino, exe.SHA256, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(h.shared.files); n > 1 { // the last deletion is still queued
		t.Errorf("%d files are remembered that are gone", n)
	}
}

func TestWatchesAreBounded(t *testing.T) {
	h := hasher(t, 10)
	for i := range maxWatched {
		h.shared.files[fileKey{ino: uint64(i)}] = &file{}
	}
	p, img := program(t, "x")
	if _, err := h.Executable(t.Context(), p, img); err != nil || len(h.shared.files) != 1 || len(h.shared.watches) != 1 {
		t.Errorf("%d files are watched, %v", len(h.shared.files), err)
	}
}

func TestQueueOverflowForgetsEverything(t *testing.T) {
	h := hasher(t, 10)
	p, img := program(t, "x")
	if _, err := h.Executable(t.Context(), p, img); err != nil || len(h.shared.files) != 1 {
		t.Fatalf("%d files are watched, %v", len(h.shared.files), err)
	}
	raw := make([]byte, unix.SizeofInotifyEvent)
	copy(raw, []byte{255, 255, 255, 255})
	binary.NativeEndian.PutUint32(raw[4:], unix.IN_Q_OVERFLOW)
	if err := h.shared.apply(raw); err != nil || len(h.shared.files) != 0 {
		t.Errorf("got %v, %v", h.shared.files, err)
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(make([]byte, unix.SizeofInotifyEvent))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, rest, err := parseEvent(raw); err == nil && len(rest) >= len(raw) {
			t.Error("an event without length")
		}
	})
}

func BenchmarkSecondImage100MB(b *testing.B) {
	path := filepath.Join(b.TempDir(), "big")
	if err := os.WriteFile(path, make([]byte, 100<<20), 0o700); err != nil {
		b.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		b.Fatal(err)
	}
	h, err := New(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	p := &running{id: 1, path: path}
	img := Image{Inode: st.Ino, FSMagic: 0xef53}
	began := time.Now()
	if _, err := h.Executable(b.Context(), p, img); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(began).Milliseconds()), "first-ms")
	for b.Loop() {
		p.id++
		if _, err := h.Executable(b.Context(), p, img); err != nil {
			b.Fatal(err)
		}
	}
}
