// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestNamesFollowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	write := func(text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	n := names{path: path}
	if got := n.lookup(0); got != "" {
		t.Errorf("no file, but user 0 is %q", got)
	}
	write("root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\n# c:x:5\nbad:x:no\n:x:7\n+\npay:x:1000:1000", time.Unix(1, 0))
	for id, want := range map[uint32]string{0: "root", 1000: "pay", 5: "", 7: ""} {
		if got := n.lookup(id); got != want {
			t.Errorf("user %d is %q, want %q", id, got, want)
		}
	}
	write("pay:x:1001:1000\n", time.Unix(2, 0))
	if a, b := n.lookup(1000), n.lookup(1001); a != "" || b != "pay" {
		t.Errorf("after a change: %q %q", a, b)
	}
}

func FuzzParseNames(f *testing.F) {
	f.Add([]byte("root:x:0:0::/:/bin/sh\n"))
	f.Add([]byte(":::\n\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range parseNames(data) {
			if name == "" {
				t.Error("an empty name")
			}
		}
	})
}
