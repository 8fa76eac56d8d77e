// SPDX-License-Identifier: Apache-2.0

package process

import (
	"slices"
	"strings"
	"testing"
)

func TestParseMaps(t *testing.T) {
	const maps = `00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/dbus-daemon
7f1ab0000000-7f1ab0021000 rwxp 00000000 00:00 0
35b1800000-35b1820000 r-xp 00000000 08:02 135522  /usr/lib64/ld 2.15.so (deleted)
35b1a1f000-35b1a20000 r-xp 0001f000 08:02 135522  /usr/lib64/ld 2.15.so (deleted)
7ffd0000-7ffd1000 r-xp 00000000 00:00 0           [vdso]
`
	got, err := parseMaps([]byte(maps))
	if want := []string{"400000-452000", "35b1800000-35b1820000"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"x\n", "00-zz r-xp 0 08:02 5 /x\n", "../../etc r-xp 0 08:02 5 /x\n"} {
		if got, err := parseMaps([]byte(bad)); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00452000 r-xp 00000000 08:02 173521 /x\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ranges, err := parseMaps(raw)
		for _, r := range ranges {
			if err == nil && strings.Trim(r, "0123456789abcdef-") != "" {
				t.Errorf("a range that is none: %q", r)
			}
		}
	})
}

func TestOpenMapped(t *testing.T) {
	c := start(t, copyOf(t))
	defer c.stop()
	p := pin(t, c.Cmd.Process.Pid)
	files, err := p.OpenMapped()
	if err != nil || len(files) == 0 {
		t.Fatalf("got %v, %v", files, err)
	}
	for _, f := range files {
		f.Close()
	}
}
