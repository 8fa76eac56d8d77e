// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/store/member"
	"github.com/assay-id/assay/server/storetest"
)

// parentDir makes the test binary a server that only holds a store open.
const parentDir = "ASSAY_STORE_TEST_PARENT"

// TestNoStore: who waits for a store that is away is told so, and for how long it has been.
func TestNoStore(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	s, err := store.Open(ctx, store.Config{Endpoints: []string{"http://127.0.0.1:1"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err == nil {
		s.Close()
		t.Fatal("a store on port 1")
	}
	for _, text := range []string{err.Error(), log.String()} {
		if !errors.Is(err, store.ErrUnavailable) || !regexp.MustCompile(`no answer for [5-9]s`).MatchString(text) {
			t.Errorf("said %q", text)
		}
	}
	if n := strings.Count(log.String(), "waiting for the store"); n != 1 {
		t.Errorf("said %d times: %s", n, &log)
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentDir); dir != "" && len(os.Args) == 1 {
		if _, err := store.Open(context.Background(), store.Config{Dir: dir}); err != nil {
			panic(err)
		}
		fmt.Println("open")
		select {}
	}
	os.Exit(storetest.Main(m))
}

func put(t *testing.T, s *store.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

// memberPID finds the child by its command line among our children.
func memberPID(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		more, _ := os.ReadFile(f)
		data = append(append(data, ' '), more...)
	}
	for _, field := range strings.Fields(string(data)) {
		cmd, _ := os.ReadFile("/proc/" + field + "/cmdline")
		if bytes.Contains(cmd, []byte(member.Command)) {
			pid, _ := strconv.Atoi(field)
			return pid
		}
	}
	t.Fatalf("no store-member among our children (%v)", err)
	return 0
}

func TestCommitSnapshotWatch(t *testing.T) {
	s := storetest.Open(t)
	first := put(t, s, "e/1", "a")
	put(t, s, "f/1", "other prefix")
	last := put(t, s, "e/2", "b")

	kvs, rev, err := s.Snapshot(t.Context(), "e/")
	if err != nil || rev != last {
		t.Fatalf("Snapshot at %d, %v; want %d", rev, err, last)
	}
	if got := fmt.Sprint(kvs); got != fmt.Sprintf("[{e/1 [97] %d} {e/2 [98] %d}]", first, last) {
		t.Errorf("Snapshot = %s", got)
	}

	batches := s.Watch(t.Context(), "e/", rev)
	rev, err = s.Commit(t.Context(), store.Txn{
		Compares: []store.Compare{store.Unchanged("e/1", first), store.NotAfter("f/1", last), store.Unchanged("e/3", 0)},
		Puts:     []store.KV{{Key: "e/3", Value: []byte("c")}},
		Deletes:  []string{"e/1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	b := <-batches
	if b.Revision != rev || len(b.Changes) != 2 || b.Changes[1].Key != "e/1" || b.Changes[1].Value != nil {
		t.Errorf("Watch delivered %+v, want both changes of revision %d", b, rev)
	}

	for name, c := range map[string]store.Compare{
		"changed":     store.Unchanged("e/2", first),
		"exists":      store.Unchanged("e/2", 0),
		"gone":        store.Unchanged("e/1", first),
		"later write": store.NotAfter("e/2", last-1),
	} {
		_, err := s.Commit(t.Context(), store.Txn{Compares: []store.Compare{c}, Puts: []store.KV{{Key: "e/x"}}})
		var conflict *store.ConflictError
		if !errors.Is(err, store.ErrConflict) || !errors.As(err, &conflict) {
			t.Errorf("%s: Commit = %v, want a conflict", name, err)
			continue
		}
		if want := map[bool]int64{true: 0, false: last}[name == "gone"]; conflict.Revision != want {
			t.Errorf("%s: conflict at %d, want %d", name, conflict.Revision, want)
		}
	}
	if kvs, _, _ := s.Snapshot(t.Context(), "e/x"); len(kvs) != 0 {
		t.Error("a refused transaction wrote")
	}
}

func TestMemberKilled(t *testing.T) {
	s := storetest.Open(t)
	rev := put(t, s, "e/1", "acknowledged")
	batches := s.Watch(t.Context(), "e/", rev)
	if err := syscall.Kill(memberPID(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Refused with a reason, or served by the next process: never a silent loss.
	deadline := time.Now().Add(20 * time.Second)
	var next int64
	for next == 0 {
		var err error
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		next, err = s.Commit(ctx, store.Txn{Puts: []store.KV{{Key: "e/2", Value: []byte("after")}}})
		cancel()
		if err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Commit = %v, want ErrUnavailable", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("no recovery: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if b := <-batches; b.Err != nil || b.Changes[0].Key != "e/2" {
		t.Errorf("the watch did not survive: %+v", b)
	}
	kvs, _, err := s.Snapshot(t.Context(), "e/1")
	if err != nil || len(kvs) != 1 {
		t.Errorf("acknowledged write after kill -9: %v, %v", kvs, err)
	}
	if h := s.Health(); h.Restarts != 1 {
		t.Errorf("Health = %+v, want one restart", h)
	}
}

func TestOneServerPerFolder(t *testing.T) {
	dir := t.TempDir()
	storetest.OpenDir(t, dir)
	_, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by another assay-server") {
		t.Errorf("second Open = %v", err)
	}
}

// TestNoOrphan: the member ends with its parent, however that ends.
func TestNoOrphan(t *testing.T) {
	dir := t.TempDir()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentDir+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	waitFor(t, "the orphan's end", func() bool {
		cmds, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		return !slices.ContainsFunc(cmds, func(f string) bool {
			cmd, _ := os.ReadFile(f)
			return bytes.Contains(cmd, []byte(member.Command)) && bytes.Contains(cmd, []byte(dir))
		})
	})
	put(t, storetest.OpenDir(t, dir), "e/1", "the folder is free again")
}

// TestMemberHangs: reads and writes are refused with a reason, and go on when it wakes.
func TestMemberHangs(t *testing.T) {
	s := storetest.Open(t)
	pid := memberPID(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	waitFor(t, "the hang to be noticed", func() bool { return !s.Health().Ready })
	began := time.Now()
	_, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: "e/1"}}})
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "no answer for") || time.Since(began) > time.Second {
		t.Errorf("Commit = %v after %v; want a refusal at once", err, time.Since(began))
	}
	if s.Age() < time.Second {
		t.Errorf("Age = %v", s.Age())
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "recovery", func() bool { return s.Health().Ready })
	put(t, s, "e/1", "x")
}

// TestEndpoints: an etcd that is already there, shared under a prefix of its own.
func TestEndpoints(t *testing.T) {
	dir := t.TempDir()
	ours := storetest.OpenDir(t, dir)
	put(t, ours, "e/1", "ours")
	theirs, err := store.Open(t.Context(), store.Config{Endpoints: []string{"unix://" + filepath.Join(dir, "run", "client.sock")}, Prefix: "other/"})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if kvs, _, err := theirs.Snapshot(t.Context(), ""); err != nil || len(kvs) != 0 {
		t.Errorf("another prefix shows %v, %v", kvs, err)
	}
	put(t, theirs, "e/1", "theirs")
	if kvs, _, err := ours.Snapshot(t.Context(), "e/"); err != nil || len(kvs) != 1 || string(kvs[0].Value) != "ours" {
		t.Errorf("our prefix shows %v, %v", kvs, err)
	}
	if h := theirs.Health(); !h.Ready || h.MinFreeBytes != 0 {
		t.Errorf("Health = %+v", h)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := storetest.OpenDir(t, dir)
	put(t, s, "e/1", "a")
	s.Close()
	kvs, _, err := storetest.OpenDir(t, dir).Snapshot(t.Context(), "e/")
	if err != nil || len(kvs) != 1 {
		t.Errorf("after reopening: %v, %v", kvs, err)
	}
}

// TestDiskFull fills the file system under etcd until its process ends, and frees it.
func TestDiskFull(t *testing.T) {
	dir := tmpfs(t, "288m")
	s := storetest.OpenDir(t, dir)
	acked := 0
	if h := s.Health(); h.FreeBytes == 0 || h.MinFreeBytes != 288<<20/10 {
		t.Errorf("Health = %+v, want a floor of a tenth of the small file system", h)
	}
	put(t, s, "e/first", "x")
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)

	// The floor: growth is refused, freeing and essential writes are not.
	_, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: "e/no"}}})
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "free space, or move data_dir") {
		t.Errorf("Commit on a full disk = %v, want ErrFull", err)
	}
	if _, err := s.Commit(t.Context(), store.Txn{Deletes: []string{"e/first"}}); err != nil {
		t.Errorf("a delete on a full disk: %v", err)
	}

	value := bytes.Repeat([]byte("v"), 64<<10)
	var refused error
	for i := 0; i < 6000 && refused == nil; i++ {
		_, err := s.Commit(t.Context(), store.Txn{Essential: true, Puts: []store.KV{{Key: fmt.Sprintf("e/%06d", i), Value: value}}})
		if err == nil {
			acked++
		} else {
			refused = err
		}
	}
	if !errors.Is(refused, store.ErrUnavailable) {
		t.Fatalf("after %d writes on a full disk: %v", acked, refused)
	}
	waitFor(t, "the sentence", func() bool {
		return strings.Contains(s.Health().Reason, "has no room; free space or move data_dir")
	})
	if s.Age() == 0 {
		t.Error("Age is zero while the store is gone")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "recovery", func() bool { return s.Health().Ready && s.Age() < 3*time.Second })
	kvs, _, err := s.Snapshot(t.Context(), "e/")
	if err != nil || len(kvs) < acked {
		t.Errorf("%d of %d acknowledged writes are there (%v)", len(kvs), acked, err)
	}
	put(t, s, "e/again", "x")
	t.Logf("%d writes acknowledged before the disk was full, none lost", acked)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s", what)
		}
	}
}

func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		skip(t, "mount a tmpfs (needs root): "+err.Error())
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fill takes all but a few MiB.
func fill(t *testing.T, path string) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(4<<20)); err != nil {
		t.Fatal(err)
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("ASSAY_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
