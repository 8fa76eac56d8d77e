// SPDX-License-Identifier: Apache-2.0

// Package debian makes allow-lists (tpm/ima) of the files that Debian packages install. An installed
// file counts only if it still has the MD5 that dpkg noted: that tells of files that were changed
// since, unless dpkg's database was changed with them. So learn on a machine that you trust, or from
// package files that apt verified.
package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/md5" // what dpkg's database holds
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"

	"github.com/assay-id/assay/tpm/ima"
)

// Learner adds files of packages to List.
type Learner struct {
	List *ima.AllowList
	// All files are learned, for IMA policies that measure what root reads (ima_policy=tcb); otherwise
	// what is executed, mapped as code or loaded by the kernel.
	All bool
	// Root is the folder with the system, "/" for this one. Links out of another folder are not followed.
	Root string

	// Learned is how many files were.
	Learned int
	// Changed files are not as dpkg noted and were left out; of them, Edited are configuration files,
	// which it is for people to change.
	Changed, Edited []string
	// Without are packages for whose files dpkg noted nothing.
	Without []string
}

// Installed learns packages of Root's dpkg, written as "name" or "name:architecture"; without names all.
func (l *Learner) Installed(names ...string) error {
	r, err := openRoot(l.Root)
	if err != nil {
		return err
	}
	defer r.Close()
	database := func(name string) ([]byte, error) { return r.readAll("var/lib/dpkg/" + name) }
	status, err := database("status")
	if err != nil {
		return fmt.Errorf("dpkg's database: %w; name the folder of a Debian system with --root", err)
	}
	installed, err := parseStatus(status)
	if err != nil {
		return fmt.Errorf("dpkg's database: %w", err)
	}
	chosen, err := choose(installed, names)
	if err != nil {
		return err
	}
	moved := map[string]diversion{}
	if data, err := database("diversions"); err == nil {
		moved = parseDiversions(data)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dpkg's database: %w", err)
	}
	for _, p := range chosen {
		sums, err := p.sums(database)
		if errors.Is(err, fs.ErrNotExist) {
			l.Without = append(l.Without, p.name)
		} else if err != nil {
			return fmt.Errorf("dpkg's database: package %s: %w", p.name, err)
		}
		for _, f := range append(sums, p.conffiles...) {
			if d, ok := moved[f.name]; ok && d.by != p.name {
				f.name = d.to
			}
			if err := l.learn(r, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// learn adds one installed file, if it is as dpkg noted. Files that are not there (documentation is
// often left out) can not be run.
func (l *Learner) learn(r *root, want noted) error {
	f, err := r.open(want.name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	} else if err != nil {
		l.changed(want)
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("/%s: %w", want.name, err)
	}
	if !st.Mode().IsRegular() {
		l.changed(want)
		return nil
	}
	sum := md5.New()
	digest, runs, err := l.digest(want.name, st.Mode(), f, sum)
	switch {
	case err != nil:
		return fmt.Errorf("/%s: %w", want.name, err)
	case !runs:
	case want.md5 != [md5.Size]byte(sum.Sum(nil)):
		l.changed(want)
	default:
		l.add(digest, want.name)
	}
	return nil
}

func (l *Learner) changed(f noted) {
	if l.Changed = append(l.Changed, "/"+f.name); f.config {
		l.Edited = append(l.Edited, "/"+f.name)
	}
}

func (l *Learner) add(d ima.Digest, name string) {
	l.List.Add(d, "/"+name)
	l.Learned++
}

// File learns a package file (.deb), with dpkg-deb.
func (l *Learner) File(ctx context.Context, deb string) error {
	var complaint bytes.Buffer
	c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	c.Stderr = &complaint
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); errors.Is(err, exec.ErrNotFound) {
		return errors.New("dpkg-deb is not installed here; learn package files on a Debian machine")
	} else if err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	err = l.archive(out)
	if err != nil {
		_ = c.Process.Kill() // it waits for a reader
	}
	if end := c.Wait(); err == nil && end != nil {
		err = fmt.Errorf("dpkg-deb: %w: %s", end, strings.TrimSpace(complaint.String()))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", deb, err)
	}
	return nil
}

// archive learns the files of a tar archive.
func (l *Learner) archive(r io.Reader) error {
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, r) // the padding
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		digest, runs, err := l.digest(name, h.FileInfo().Mode(), files)
		if err != nil {
			return err
		}
		if runs {
			l.add(digest, name)
		}
	}
}

// digest reads a file that is to be learned, into also, too; the others are not read to their end.
func (l *Learner) digest(name string, mode fs.FileMode, r io.Reader, also ...hash.Hash) (d ima.Digest, runs bool, err error) {
	head := make([]byte, 4)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return d, false, err
	}
	head = head[:n]
	if !l.All && !isCode(name, mode, head) {
		return d, false, nil
	}
	sum := sha256.New()
	into := []io.Writer{sum}
	for _, h := range also {
		into = append(into, h)
	}
	if _, err := io.Copy(io.MultiWriter(into...), io.MultiReader(bytes.NewReader(head), r)); err != nil {
		return d, false, err
	}
	return ima.Digest(sum.Sum(nil)), true, nil
}

// isCode tells what is executed, mapped as code (libraries are not executable by mode), or loaded by the kernel.
func isCode(name string, mode fs.FileMode, head []byte) bool {
	switch {
	case mode&0o111 != 0, bytes.Equal(head, []byte("\x7fELF")), bytes.HasPrefix(head, []byte("#!")):
		return true
	case strings.HasPrefix(name, "lib/firmware/"), strings.HasPrefix(name, "usr/lib/firmware/"):
		return true
	case strings.HasPrefix(name, "boot/vmlinuz"): // kexec
		return true
	}
	base, _, compressed := strings.Cut(path.Base(name), ".ko.")
	return compressed && base != ""
}

// root is the folder with a system.
type root struct{ *os.Root } // nil is "/"

func openRoot(dir string) (*root, error) {
	if path.Clean(dir) == "/" {
		return &root{}, nil
	}
	r, err := os.OpenRoot(dir)
	return &root{r}, err
}

func (r *root) Close() error {
	if r.Root == nil {
		return nil
	}
	return r.Root.Close()
}

// open does not wait for what a FIFO would bring.
func (r *root) open(name string) (*os.File, error) {
	if r.Root == nil {
		return os.OpenFile("/"+name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return r.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

func (r *root) readAll(name string) ([]byte, error) {
	f, err := r.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// parseMD5 reads an MD5 in hexadecimal digits.
func parseMD5(text string) (sum [md5.Size]byte, ok bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != md5.Size {
		return sum, false
	}
	return [md5.Size]byte(b), true
}
