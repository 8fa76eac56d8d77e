// SPDX-License-Identifier: Apache-2.0

package keys_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

// chip is a device as the server gives it to keys.
type chip struct{ *device.Device }

func (c chip) Key(unique [32]byte) (crypto.Signer, error) { return c.NewKey(unique) }

func openTPM(t *testing.T, path, dir string) *keys.TPM {
	t.Helper()
	d, err := device.Open(t.Context(), device.Config{Path: path})
	check(t, err)
	m, err := keys.OpenTPM(dir, chip{d})
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	return m
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// managers open the same keys again each time.
func managers(t *testing.T) map[string]func() keys.Manager {
	disk, memory, chips := filepath.Join(t.TempDir(), "disk"), &keys.Memory{}, t.TempDir()
	tpm := swtpmtest.New(t)
	hsm := newHSM(t)
	var last *keys.TPM
	return map[string]func() keys.Manager{
		"disk": func() keys.Manager {
			m, err := keys.OpenDisk(disk)
			check(t, err)
			return m
		},
		"memory": func() keys.Manager { return memory },
		"tpm": func() keys.Manager {
			if last != nil {
				check(t, last.Close())
			}
			last = openTPM(t, tpm.Path, chips)
			return last
		},
		"pkcs11": func() keys.Manager { return hsm.open(t) },
	}
}

func TestConformance(t *testing.T) {
	for name, open := range managers(t) {
		t.Run(name, func(t *testing.T) {
			ctx, m := t.Context(), open()
			made := map[string]crypto.Signer{}
			for _, kind := range keys.Types {
				key, err := m.Generate(ctx, "x509-"+string(kind), kind)
				if name == "tpm" && kind != keys.ECP256 {
					if err == nil {
						t.Errorf("a TPM made a key of type %s", kind)
					}
					continue
				}
				check(t, err)
				made["x509-"+string(kind)] = key
			}
			if _, err := m.Generate(ctx, "x509-ec-p256", keys.ECP256); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Generate of a name that is taken = %v", err)
			}
			m = open()
			for name, key := range made {
				again, err := m.Open(ctx, name)
				check(t, err)
				if !again.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
					t.Errorf("%s is another key when opened again", name)
				}
				signs(t, again)
			}
			if names, err := m.List(ctx); err != nil || len(names) != len(made) || !slices.Contains(names, "x509-ec-p256") {
				t.Errorf("List = %q, %v; want %d names", names, err, len(made))
			}
			removal(t, m)
			bad(t, m)
		})
	}
}

func removal(t *testing.T, m keys.Manager) {
	t.Helper()
	for range 2 { // none of that name is no error
		check(t, m.Delete(t.Context(), "x509-ec-p256"))
	}
	if _, err := m.Open(t.Context(), "x509-ec-p256"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Delete = %v", err)
	}
	_, err := m.Generate(t.Context(), "x509-ec-p256", "")
	check(t, err)
}

func bad(t *testing.T, m keys.Manager) {
	t.Helper()
	for _, name := range []string{"", "../x", "a/b", "a.b", strings.Repeat("a", 129), "ä"} {
		if _, err := m.Generate(t.Context(), name, ""); err == nil {
			t.Errorf("Generate(%q) made a key", name)
		}
		if _, err := m.Open(t.Context(), name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q) = %v", name, err)
		}
		if err := m.Delete(t.Context(), name); err == nil {
			t.Errorf("Delete(%q) is no error", name)
		}
	}
	if _, err := m.Generate(t.Context(), "odd", "ec-p257"); err == nil {
		t.Error("made a key of type ec-p257")
	}
}

// signs checks that many may sign at once with what a CA signs with.
func signs(t *testing.T, key crypto.Signer) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), IsCA: true, BasicConstraintsValid: true}
			der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
			if err != nil {
				t.Error(err)
				return
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil || cert.CheckSignatureFrom(cert) != nil {
				t.Errorf("a certificate does not verify: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	m, err := keys.OpenDisk(dir)
	check(t, err)
	_, err = m.Generate(t.Context(), "a", "")
	check(t, err)
	path := filepath.Join(dir, "a.pem")
	for p, want := range map[string]fs.FileMode{dir: 0o700, path: 0o600} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, st.Mode(), err, want)
		}
	}
	// A crash in the middle of a write leaves a part of a file that is no key.
	check(t, os.WriteFile(filepath.Join(dir, "b.pem.new"), []byte("-----BEGIN"), 0o600))
	if names, err := m.List(context.Background()); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("List = %q, %v", names, err)
	}
	_, err = m.Generate(t.Context(), "b", "")
	check(t, err)
	data, err := os.ReadFile(path)
	check(t, err)
	for what, damaged := range map[string][]byte{"empty": nil, "cut": data[:len(data)/2], "public": []byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n")} {
		check(t, os.WriteFile(path, damaged, 0o600))
		if _, err := m.Open(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s file: Open = %v, want an error that it is damaged", what, err)
		}
	}
}

// TestAnotherTPM: a copy of the folder signs nothing on another machine.
func TestAnotherTPM(t *testing.T) {
	dir := t.TempDir()
	m := openTPM(t, swtpmtest.New(t).Path, dir)
	_, err := m.Generate(t.Context(), "a", "")
	check(t, err)
	if _, err := openTPM(t, swtpmtest.Other(t).Path, dir).Open(t.Context(), "a"); err == nil {
		t.Error("another TPM opened the key")
	}
	check(t, os.WriteFile(filepath.Join(dir, "a.tpm"), []byte(`{"unique":"AA=="}`), 0o600))
	if _, err := m.Open(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("damaged file: Open = %v", err)
	}
}
