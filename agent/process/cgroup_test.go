// SPDX-License-Identifier: Apache-2.0

package process

import "testing"

func TestParseV1Cgroup(t *testing.T) {
	for raw, want := range map[string]string{
		"0::/system.slice/a.service\n":                         "",
		"4:cpu,cpuacct:/x\n1:name=systemd:/docker/abc\n0::/\n": "/docker/abc",
		"1:name=systemd:/user.slice/a:b\n":                     "/user.slice/a:b",
		"":                                                     "",
	} {
		if got, err := parseV1Cgroup([]byte(raw)); err != nil || got != want {
			t.Errorf("%q: got %q, %v", raw, got, err)
		}
	}
	if _, err := parseV1Cgroup([]byte("garbage\n")); err == nil {
		t.Error("garbage was read")
	}
}

func FuzzParseV1Cgroup(f *testing.F) {
	f.Add([]byte("1:name=systemd:/x\n0::/\n"))
	f.Fuzz(func(t *testing.T, raw []byte) { _, _ = parseV1Cgroup(raw) })
}
