// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
)

// A full disk under the store refuses new entries in words, keeps what it acknowledged, goes
// on to sign and to delete, and takes entries again once there is room.
func TestFullDisk(t *testing.T) {
	disk, err := os.MkdirTemp("/run", "assay-disk-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755,size=288m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
		_ = os.Remove(disk)
	})
	m := start(t, dev.Options{Dir: filepath.Join(disk, "dev")})
	m.create(t, "/w", "--selector", me(t))
	doomed := m.create(t, "/doomed", "--selector", "unix:uid:4714")
	create := func(path string) error {
		_, err := m.assay(t, "entry", "create", "--spiffe-id", "spiffe://example.org"+path, "--parent", m.NodeID, "--selector", "unix:uid:4713")
		return err
	}
	var acknowledged []string
	for i := range 5 {
		path := fmt.Sprintf("/before/%d", i)
		if err := create(path); err != nil {
			t.Fatal(err)
		}
		acknowledged = append(acknowledged, path)
	}

	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	err = create("/full")
	if err == nil {
		t.Fatal("an entry was taken by a full disk")
	}
	t.Log(err)
	contains(t, "a full disk", err.Error(), "the store has no room", "free space, or move data_dir")
	m.must(t, nil, "entry", "delete", doomed.ID)
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("on a full disk: %+v", e)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "entries to be taken again", func() bool { return create("/after") == nil })
	shown := m.must(t, nil, "entry", "show")
	for _, path := range append(acknowledged, "/w", "/after") {
		if !strings.Contains(shown, "spiffe://example.org"+path+"\n") {
			t.Errorf("entry %s is lost", path)
		}
	}
	if strings.Contains(shown, "/doomed") || strings.Contains(shown, "/full") {
		t.Errorf("entries that must not be there:\n%s", shown)
	}
}

// fill takes all but 8 MiB of the file system.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-8<<20); err != nil {
		t.Fatal(err)
	}
}
