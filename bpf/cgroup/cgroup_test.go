// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	if _, err := Open("/proc"); err == nil || !strings.Contains(err.Error(), "/proc is not a cgroup v2 mount") {
		t.Errorf("a mount of another kind: %v", err)
	}
	tree, err := Open("")
	if err != nil {
		skip(t, err)
	}
	defer tree.Close()
	path := fmt.Sprintf("/assay-tree-%d", os.Getpid())
	if err := os.Mkdir(filepath.Join(tree.Mount, path), 0o755); err != nil {
		skip(t, err)
	}
	id, err := tree.ID(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Path(id); err != nil || got != path {
		t.Errorf("cgroup %d is %q, %v", id, got, err)
	}
	root, err := tree.ID("/")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Path(root); err != nil || got != "/" {
		t.Errorf("the root is %q, %v", got, err)
	}
	if err := os.Remove(filepath.Join(tree.Mount, path)); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.ID(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the id of a removed cgroup: %v", err)
	}
	if got, err := tree.Path(id); err == nil {
		t.Errorf("a removed cgroup is at %q", got)
	}
}

// skip is for machines without cgroup v2 or the privilege to change it, unless that is forbidden.
func skip(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("ASSAY_NO_SKIP") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func TestFindMount(t *testing.T) {
	const info = "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"26 25 0:23 /part /mnt/part rw shared:1 - cgroup2 none rw\n" +
		"27 25 0:23 / /mnt/a\\040b rw,nosuid shared:1 master:2 - cgroup2 none rw\n"
	if got := findMount([]byte(info)); got != "/mnt/a b" {
		t.Errorf("found %q", got)
	}
}

func FuzzFindMount(f *testing.F) {
	f.Add([]byte("27 25 0:23 / /mnt/a\\040b rw,nosuid shared:1 master:2 - cgroup2 none rw\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p := findMount(raw); len(p) > len(raw) {
			t.Errorf("found %q", p)
		}
	})
}
