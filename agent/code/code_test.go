// SPDX-License-Identifier: Apache-2.0

package code

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// kernel knows files by inode; a write is a higher generation.
type kernel map[uint64]uint64

func (k kernel) FileState(fd int) (token, wgen uint64, err error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return 0, 0, err
	}
	wgen, ok := k[st.Ino]
	if !ok {
		return 0, 0, errors.New("no record")
	}
	return st.Ino, wgen, nil
}

type runner []string

func (p runner) OpenMapped() (files []*os.File, err error) {
	for _, path := range p {
		f, err := os.Open(path)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func library(t *testing.T, content string) (path string, inode uint64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "lib.so")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return path, st.Ino
}

func mapped(inodes ...uint64) record.Code {
	c := record.Code{Known: true}
	for _, i := range inodes {
		c.Files = append(c.Files, record.MappedFile{Inode: i, Token: i, WGen: 1})
	}
	return c
}

func TestDigestOfASet(t *testing.T) {
	a, ia := library(t, "a")
	b, ib := library(t, "b")
	k := kernel{ia: 1, ib: 1}
	r := New(k)
	program := record.File{Inode: 77}
	got, err := r.Read(runner{a, b}, mapped(ia, 77, ib), program)
	if err != nil || !got.Known || got.Files != 2 || got.Anonymous {
		t.Fatalf("got %+v, %v", got, err)
	}
	da, db := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	pair := append(da[:], db[:]...)
	if string(db[:]) < string(da[:]) {
		pair = append(db[:], da[:]...)
	}
	if got.Libraries != sha256.Sum256(pair) {
		t.Error("not the digest over the sorted digests")
	}
	if other, err := r.Read(runner{b, a}, mapped(ib, ia), program); err != nil || other != got {
		t.Errorf("the order matters: %+v, %v", other, err)
	}
	alone, err := r.Read(runner{}, mapped(77), program)
	if err != nil || !alone.Known || alone.Files != 0 || alone.Libraries != sha256.Sum256(nil) {
		t.Errorf("a static program: %+v, %v", alone, err)
	}
}

func TestUnknownRatherThanWrong(t *testing.T) {
	a, ia := library(t, "a")
	const foreign = "/proc/version" // as an overlay: the kernel does not see all that changes it
	var st syscall.Stat_t
	if err := syscall.Stat(foreign, &st); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		k    kernel
		code record.Code
		p    runner
	}{
		"not seen":             {kernel{ia: 1}, record.Code{}, runner{a}},
		"unseen writes":        {kernel{st.Ino: 1}, mapped(st.Ino), runner{foreign}},
		"too many":             {kernel{ia: 1}, record.Code{Known: true, Overflow: true}, runner{a}},
		"written since":        {kernel{ia: 2}, mapped(ia), runner{a}},
		"unmapped since":       {kernel{ia: 1}, mapped(ia), runner{}},
		"without a record":     {kernel{}, mapped(ia), runner{a}},
		"writers at mapping":   {kernel{ia: 1}, record.Code{Known: true, Files: []record.MappedFile{{Inode: ia, Token: ia, WGen: 1, Writers: true}}}, runner{a}},
		"without a generation": {kernel{ia: 1}, record.Code{Known: true, Files: []record.MappedFile{{Inode: ia}}}, runner{a}},
	} {
		if got, err := New(c.k).Read(c.p, c.code, record.File{}); err != nil || got.Known || got.Libraries != (selectors.Digest{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestContentIsReadOncePerGeneration(t *testing.T) {
	a, ia := library(t, "a")
	k := kernel{ia: 1}
	r := New(k)
	first, err := r.Read(runner{a}, mapped(ia), record.File{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a, []byte("b"), 0o600); err != nil { // behind the kernel's back
		t.Fatal(err)
	}
	if again, _ := r.Read(runner{a}, mapped(ia), record.File{}); again != first {
		t.Error("read again")
	}
	k[ia] = 2
	code := mapped(ia)
	code.Files[0].WGen = 2
	if written, _ := r.Read(runner{a}, code, record.File{}); !written.Known || written.Libraries == first.Libraries {
		t.Errorf("after a write: %+v", written)
	}
}
