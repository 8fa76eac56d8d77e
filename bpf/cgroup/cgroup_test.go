// SPDX-License-Identifier: Apache-2.0

package cgroup

import "testing"

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
