// SPDX-License-Identifier: Apache-2.0

package code

import (
	"crypto/sha256"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/assay-id/assay/agent/process"
)

const ext = 0xef53

func TestScriptIsUnknownRatherThanWrong(t *testing.T) {
	path, ino := library(t, "#!/bin/sh\n")
	for name, c := range map[string]struct {
		k kernel
		s Script
	}{
		"not seen (T2)":   {kernel{ino: 1}, Script{Path: path, FSMagic: ext}},
		"relative":        {kernel{ino: 1}, Script{Path: "lib.so", Token: ino, WGen: 1, FSMagic: ext}},
		"no name":         {kernel{ino: 1}, Script{Token: ino, WGen: 1, FSMagic: ext}},
		"cut":             {kernel{ino: 1}, Script{Path: "/" + string(make([]byte, 254)), Token: ino, WGen: 1, FSMagic: ext}},
		"overlay":         {kernel{ino: 1}, Script{Path: path, Token: ino, WGen: 1, FSMagic: 0x794c7630}},
		"network":         {kernel{ino: 1}, Script{Path: path, Token: ino, WGen: 1, FSMagic: 0x6969}},
		"written since":   {kernel{ino: 2}, Script{Path: path, Token: ino, WGen: 1, FSMagic: ext}},
		"another file":    {kernel{ino: 1}, Script{Path: path, Token: ino + 1, WGen: 1, FSMagic: ext}},
		"without a state": {kernel{}, Script{Path: path, Token: ino, WGen: 1, FSMagic: ext}},
		"not there":       {kernel{ino: 1}, Script{Path: path + "x", Token: ino, WGen: 1, FSMagic: ext}},
	} {
		if got, err := New(c.k).Script(open{}, c.s); !errors.Is(err, ErrNoScript) || !got.SHA256.IsZero() || got.Path != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	got, err := New(kernel{ino: 1}).Script(open{}, Script{Path: path, Token: ino, WGen: 1, FSMagic: ext})
	if err != nil || got.SHA256 != sha256.Sum256([]byte("#!/bin/sh\n")) || got.Size != 10 || got.Path != path {
		t.Errorf("got %+v, %v", got, err)
	}
	gone := errors.New("gone")
	if _, err := New(kernel{ino: 1}).Script(open{gone}, Script{Path: path, Token: ino, WGen: 1, FSMagic: ext}); !errors.Is(err, gone) {
		t.Errorf("replaced while it was read: %v", err)
	}
}

// open follows every path: the far side of TestScriptIsUnknownRatherThanWrong.
type open struct{ gone error }

func (o open) OpenPath(path string, look func(process.Step) error) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(process.ErrPath, err)
	}
	return f, nil
}
func (o open) Still() error { return o.gone }

func TestOwnedByRoot(t *testing.T) {
	for _, c := range []struct {
		step process.Step
		ok   bool
	}{
		{process.Step{Mode: syscall.S_IFDIR | 0o755}, true},
		{process.Step{Mode: syscall.S_IFLNK | 0o777}, true},
		{process.Step{Mode: syscall.S_IFDIR | 0o775}, false},
		{process.Step{Mode: syscall.S_IFDIR | 0o757}, false},
		{process.Step{Mode: syscall.S_IFDIR | syscall.S_ISVTX | 0o777}, false},
		{process.Step{UID: 1000, Mode: syscall.S_IFDIR | 0o755}, false},
		{process.Step{UID: 1000, Mode: syscall.S_IFLNK | 0o777}, false},
	} {
		if err := ownedByRoot(c.step); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.step, err)
		}
	}
}
