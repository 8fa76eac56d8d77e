// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/assay-id/assay/selectors"
)

// process runs a file, as far as a Hasher can see.
type running struct {
	id     uint64
	path   string
	opened atomic.Int32
	gone   error // from Still
}

func (p *running) Key() selectors.ProcessKey         { return selectors.ProcessKey{ExecID: p.id} }
func (p *running) ExecutablePath() (string, error)   { return p.path, nil }
func (p *running) OpenExecutable() (*os.File, error) { p.opened.Add(1); return os.Open(p.path) }
func (p *running) Still() error                      { return p.gone }

func program(t *testing.T, content string) (*running, Image) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return &running{id: 1, path: path}, Image{Inode: st.Ino, FSMagic: tmpfs}
}

const tmpfs = 0x01021994

func hasher(t *testing.T, limit int) *Hasher {
	t.Helper()
	h, err := New(limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestOneReadForManyCallers(t *testing.T) {
	p, img := program(t, "hello")
	h := hasher(t, 10)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			exe, err := h.Executable(context.Background(), p, img)
			if err != nil || exe.SHA256 != sha256.Sum256([]byte("hello")) || exe.Size != 5 || exe.Path != p.path {
				t.Errorf("got %+v, %v", exe, err)
			}
		})
	}
	wg.Wait()
	if n := p.opened.Load(); n != 1 {
		t.Errorf("the file was read %d times", n)
	}
	if exe, ok := h.Known(1); !ok || exe.Size != 5 {
		t.Errorf("known: %+v %v", exe, ok)
	}
}

func TestOverlayIsReadEachTime(t *testing.T) {
	p, _ := program(t, "a")
	h := hasher(t, 10)
	for _, content := range []string{"a", "b"} {
		if err := os.WriteFile(p.path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		exe, err := h.Executable(t.Context(), p, Image{FSMagic: overlayMagic})
		if err != nil || exe.SHA256 != sha256.Sum256([]byte(content)) {
			t.Errorf("%s: got %+v, %v", content, exe, err)
		}
	}
	if _, ok := h.Known(1); ok {
		t.Error("a digest that may change was remembered")
	}
}

// The two ways of asking agree, and the second can tell.
func TestRunningFilesAreProtected(t *testing.T) {
	f, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	if written := executeWritten(); errors.Is(written, syscall.ETXTBSY) != errors.Is(err, syscall.ETXTBSY) {
		t.Errorf("writing what runs: %v; running what is written: %v", err, written)
	}
	path := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if f, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := execute(int(f.Fd())); !errors.Is(err, syscall.ENOEXEC) {
		t.Errorf("running an empty file that nobody writes: %v", err)
	}
}

func TestNoDigestRatherThanAWrongOne(t *testing.T) {
	p, img := program(t, "x")
	h := hasher(t, 10)
	if exe, err := h.Executable(t.Context(), p, Image{Inode: img.Inode, Writable: true}); !errors.Is(err, ErrNoDigest) || !exe.SHA256.IsZero() {
		t.Errorf("memfd: %+v, %v", exe, err)
	}
	if exe, err := h.Executable(t.Context(), p, Image{Inode: img.Inode + 1, FSMagic: tmpfs}); !errors.Is(err, ErrNoDigest) || !exe.SHA256.IsZero() {
		t.Errorf("another inode: %+v, %v", exe, err)
	}
	p.gone = errors.New("replaced")
	if _, err := h.Executable(t.Context(), p, img); !errors.Is(err, p.gone) {
		t.Errorf("replaced while reading: %v", err)
	}
	p.gone = nil
	if exe, err := h.Executable(t.Context(), p, img); err != nil || exe.SHA256.IsZero() {
		t.Errorf("a failure was remembered: %+v, %v", exe, err)
	}
}

func TestForgetsTheOldest(t *testing.T) {
	p, img := program(t, "x")
	h := hasher(t, 4)
	for p.id = 1; p.id <= 5; p.id++ {
		if _, err := h.Executable(t.Context(), p, img); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[uint64]bool{1: false, 2: false, 3: true, 4: true, 5: true} {
		if _, ok := h.Known(id); ok != want {
			t.Errorf("image %d remembered: %v", id, ok)
		}
	}
}
