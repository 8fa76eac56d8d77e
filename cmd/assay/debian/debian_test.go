// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/assay-id/assay/tpm/ima"
)

// needs skips on machines that are not Debian's, except where the tests must all run.
func needs(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("ASSAY_NO_SKIP") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), mode))
	must(t, os.Chmod(path, mode))
}

func has(l *ima.AllowList, text string) bool { return l.Has(sha256.Sum256([]byte(text))) }

// TestThisMachine: the list of a package that is installed here holds what runs here.
func TestThisMachine(t *testing.T) {
	_, err := os.Stat("/var/lib/dpkg/info/coreutils.md5sums")
	needs(t, err == nil, "this machine is not a Debian")
	l := Learner{List: &ima.AllowList{}, Root: "/"}
	must(t, l.Installed("coreutils", "libc6"))
	if len(l.Changed) > 0 || len(l.Without) > 0 || l.Learned < 300 {
		t.Errorf("%d learned, changed %v, without %v", l.Learned, l.Changed, l.Without)
	}
	cat, err := os.ReadFile("/bin/cat")
	must(t, err)
	libc, err := filepath.Glob("/usr/lib/*-linux-gnu/libc.so.6")
	must(t, err)
	library, err := os.ReadFile(libc[0])
	must(t, err)
	copyright, err := os.ReadFile("/usr/share/doc/coreutils/copyright")
	if !has(l.List, string(cat)) || !has(l.List, string(library)) || err == nil && has(l.List, string(copyright)) {
		t.Error("not what is executed, and only that")
	}
	if err := l.Installed("no-such-package"); err == nil || !strings.Contains(err.Error(), "no-such-package is not installed") {
		t.Error(err)
	}
}

const script, other = "#!/bin/sh\necho a\n", "#!/bin/sh\necho b\n"

// system is a root folder with one package and the files given, all of which dpkg noted with script's digest.
func system(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	sum := fmt.Sprintf("%x", md5.Sum([]byte(script)))
	var sums, conffiles strings.Builder
	for name, text := range files {
		write(t, filepath.Join(root, name), text, 0o755)
		if strings.HasPrefix(name, "etc/") {
			fmt.Fprintf(&conffiles, " /%s %s\n", name, sum)
		} else {
			fmt.Fprintf(&sums, "%s  %s\n", sum, name)
		}
	}
	write(t, filepath.Join(root, "var/lib/dpkg/status"), "Package: tool\nStatus: install ok installed\nArchitecture: amd64\nConffiles:\n"+conffiles.String()+
		"Description: x\n\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\n\nPackage: bare\nStatus: hold ok installed\nArchitecture: all\n", 0o644)
	write(t, filepath.Join(root, "var/lib/dpkg/info/tool:amd64.md5sums"), sums.String()+sum+"  usr/bin/missing\n", 0o644)
	return root
}

func TestTamperedFilesAreNotLearned(t *testing.T) {
	root := system(t, map[string]string{"usr/bin/good": script, "usr/bin/bad": other, "etc/init.d/tool": script, "etc/edited": other})
	l := Learner{List: &ima.AllowList{}, Root: root}
	must(t, l.Installed())
	slices.Sort(l.Changed)
	if l.Learned != 2 || !has(l.List, script) || has(l.List, other) || !slices.Equal(l.Changed, []string{"/etc/edited", "/usr/bin/bad"}) ||
		!slices.Equal(l.Edited, []string{"/etc/edited"}) || !slices.Equal(l.Without, []string{"bare"}) {
		t.Errorf("%+v", l)
	}
	if err := l.Installed("gone"); err == nil {
		t.Error("a package that was removed counts as installed")
	}
}

// TestLinksStayInside: a system in a folder can not make us read what is outside.
func TestLinksStayInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	write(t, outside, script, 0o755)
	root := system(t, map[string]string{"usr/bin/a": script, "usr/bin/b": script})
	must(t, os.Remove(filepath.Join(root, "usr/bin/a")))
	must(t, os.Symlink(outside, filepath.Join(root, "usr/bin/a")))
	must(t, exec.Command("mkfifo", filepath.Join(root, "usr/bin/c")).Run())
	must(t, os.Rename(filepath.Join(root, "usr/bin/c"), filepath.Join(root, "usr/bin/b")))
	l := Learner{List: &ima.AllowList{}, Root: root}
	must(t, l.Installed("tool:amd64"))
	if slices.Sort(l.Changed); l.Learned != 0 || !slices.Equal(l.Changed, []string{"/usr/bin/a", "/usr/bin/b"}) {
		t.Errorf("%+v", l)
	}
}

// TestDiversions: what a package installs may be elsewhere.
func TestDiversions(t *testing.T) {
	root := system(t, map[string]string{"usr/bin/a": script})
	must(t, os.Rename(filepath.Join(root, "usr/bin/a"), filepath.Join(root, "usr/bin/a.real")))
	write(t, filepath.Join(root, "usr/bin/a"), other, 0o755) // another package's
	write(t, filepath.Join(root, "var/lib/dpkg/diversions"), "/usr/bin/a\n/usr/bin/a.real\nother\n", 0o644)
	l := Learner{List: &ima.AllowList{}, Root: root}
	must(t, l.Installed())
	if len(l.Changed) > 0 || !has(l.List, script) || has(l.List, other) {
		t.Errorf("%+v", l)
	}
}

func TestPackageFile(t *testing.T) {
	_, err := exec.LookPath("dpkg-deb")
	needs(t, err == nil, "dpkg-deb is not installed here")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "p/DEBIAN/control"), "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n", 0o644)
	write(t, filepath.Join(dir, "p/usr/bin/p"), script, 0o755)
	write(t, filepath.Join(dir, "p/usr/lib/libp.so"), "\x7fELFx", 0o644)
	write(t, filepath.Join(dir, "p/lib/modules/6/p.ko.xz"), "module", 0o644)
	write(t, filepath.Join(dir, "p/usr/share/doc/p/README"), "text", 0o644)
	deb := filepath.Join(dir, "p.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "p"), deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for all, want := range map[bool]int{false: 3, true: 4} {
		l := Learner{List: &ima.AllowList{}, All: all}
		must(t, l.File(t.Context(), deb))
		if l.Learned != want || !has(l.List, script) || !has(l.List, "\x7fELFx") || !has(l.List, "module") || has(l.List, "text") != all {
			t.Errorf("all=%v: %+v", all, l)
		}
	}
	data, err := os.ReadFile(deb)
	must(t, err)
	must(t, os.WriteFile(deb, data[:len(data)-100], 0o600))
	if err := (&Learner{List: &ima.AllowList{}}).File(t.Context(), deb); err == nil {
		t.Error("a package that is cut short is learned")
	}
}

func FuzzDatabase(f *testing.F) {
	f.Add([]byte("Package: a\nStatus: install ok installed\nConffiles:\n /etc/a d41d8cd98f00b204e9800998ecf8427e obsolete\n /etc/b newconffile\n\n"))
	f.Add([]byte("d41d8cd98f00b204e9800998ecf8427e  usr/bin/a\n"))
	f.Add([]byte("/a\n/b\n:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var names []string
		packages, _ := parseStatus(data)
		for _, p := range packages {
			for _, c := range p.conffiles {
				names = append(names, c.name)
			}
			if strings.Contains(p.name+p.arch, "/") {
				t.Fatalf("package %q:%q leads elsewhere", p.name, p.arch)
			}
		}
		sums, _ := parseSums(data)
		for _, s := range sums {
			names = append(names, s.name)
		}
		for from, d := range parseDiversions(data) {
			names = append(names, from, d.to)
		}
		for _, name := range names {
			if !filepath.IsLocal(name) || bytes.ContainsRune([]byte(name), 0) {
				t.Fatalf("%q is not below the root", name)
			}
		}
	})
}
