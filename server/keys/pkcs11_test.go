// SPDX-License-Identifier: Apache-2.0

package keys_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/keys/pkcs11"
	"github.com/assay-id/assay/server/keys/softhsmtest"
)

// hsm is a token and what a server is configured with for it.
type hsm struct {
	*softhsmtest.HSM
	pkcs11.Config
	logs   *bytes.Buffer
	prefix string
}

func newHSM(t testing.TB) *hsm {
	t.Helper()
	h := softhsmtest.New(t)
	logs := &bytes.Buffer{}
	return &hsm{HSM: h, logs: logs, prefix: "assay/one/", Config: pkcs11.Config{
		Program: softhsmtest.Helper(t), Open: pkcs11.Open{Module: h.Module, TokenLabel: h.Label},
		PINFile: pkcs11.PINFile{Path: h.PINPath, Refused: filepath.Join(t.TempDir(), "refused")},
		Logger:  slog.New(slog.NewTextHandler(logs, nil)),
	}}
}

func (h *hsm) try(t testing.TB) (*keys.PKCS11, error) {
	m, err := keys.OpenPKCS11(t.Context(), pkcs11.NewHelper(h.Config), h.prefix)
	if err == nil {
		t.Cleanup(func() { _ = m.Close() })
	}
	return m, err
}

func (h *hsm) open(t testing.TB) *keys.PKCS11 {
	t.Helper()
	m, err := h.try(t)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (h *hsm) key(t testing.TB, kind keys.Type) (*keys.PKCS11, crypto.Signer) {
	t.Helper()
	m := h.open(t)
	key, err := m.Generate(t.Context(), "a", kind)
	if err != nil {
		t.Fatal(err)
	}
	return m, key
}

func sign(key crypto.Signer) error {
	digest := sha256.Sum256([]byte("x"))
	_, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	return err
}

// TestHSMForgets: what ends log-in, sessions or the module costs no signature.
func TestHSMForgets(t *testing.T) {
	h := newHSM(t)
	_, key := h.key(t, keys.ECP256)
	for _, fault := range []string{"forget", "logout", "device", "crash"} {
		h.Fail(fault)
		if err := sign(key); err != nil || !h.Failed() {
			t.Errorf("%s: sign = %v; the fault has happened: %v", fault, err, h.Failed())
		}
	}
	// All at once, and the fault amidst them.
	for _, fault := range []string{"forget", "device", "crash"} {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				if i == 20 {
					h.Fail(fault)
				}
				if err := sign(key); err != nil {
					t.Errorf("%s: %v", fault, err)
				}
			})
		}
		wg.Wait()
	}
	h.Fail("wrong")
	if err := sign(key); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("a wrong signature: %v", err)
	}
}

// TestHSMHangs: a request whose module hangs fails at its deadline; those after it are served.
func TestHSMHangs(t *testing.T) {
	h := newHSM(t)
	h.Deadline = 3 * time.Second
	_, key := h.key(t, keys.ECP256)
	h.Fail("hang")
	began := time.Now()
	err := sign(key)
	if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "not answered") || took < h.Deadline {
		t.Errorf("sign = %v after %s", err, took)
	}
	check(t, sign(key))
	// The whole program stands still.
	pid := child(t, h.Program)
	check(t, syscall.Kill(pid, syscall.SIGSTOP))
	for stat := ""; !strings.Contains(stat, ") T "); {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		check(t, err)
		stat = string(data)
	}
	if err := sign(key); err == nil || !strings.Contains(err.Error(), "not answered") {
		t.Errorf("sign with a stopped program = %v", err)
	}
	check(t, sign(key))
}

// TestHSMHangsAtTheStart: whoever gives up starting has not to wait for the module, which does not stay.
func TestHSMHangsAtTheStart(t *testing.T) {
	h := newHSM(t)
	h.Stick()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := keys.OpenPKCS11(ctx, pkcs11.NewHelper(h.Config), h.prefix)
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); h.Logins() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody logs in")
		}
	}
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("opened by a log-in that hangs")
		}
	case <-time.After(30 * time.Second): // the log-in's own deadline is three times that
		t.Fatal("OpenPKCS11 goes on after its context has ended")
	}
	pgrep := []string{"-P", strconv.Itoa(os.Getpid()), "-x", filepath.Base(h.Program)}
	for deadline := time.Now().Add(30 * time.Second); exec.Command("pgrep", pgrep...).Run() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("assay-pkcs11 stays")
		}
	}
}

// child finds our assay-pkcs11.
func child(t *testing.T, program string) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(os.Getpid()), "-x", filepath.Base(program)).Output()
	check(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	check(t, err)
	return pid
}

// TestHSMProgramKilled: kill -9 while many sign.
func TestHSMProgramKilled(t *testing.T) {
	h := newHSM(t)
	m, key := h.key(t, keys.RSA2048)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if err := sign(key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		time.Sleep(20 * time.Millisecond)
		check(t, syscall.Kill(child(t, h.Program), syscall.SIGKILL))
	})
	wg.Wait()
	check(t, m.Close())
	if !strings.Contains(h.logs.String(), "signal: killed") {
		t.Errorf("the log does not say that the program was killed:\n%s", h.logs)
	}
	if err := sign(key); err == nil {
		t.Error("a key signs after Close")
	}
}

// TestHSMAlwaysCrashes: the program is not started in a loop, and works again when the module does.
func TestHSMAlwaysCrashes(t *testing.T) {
	h := newHSM(t)
	_, key := h.key(t, keys.ECP256)
	h.Fail("always crash")
	before := h.Logins()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := sign(key); err == nil || !strings.Contains(err.Error(), "SIGABRT") {
			t.Fatalf("sign = %v", err)
		}
	}
	if starts := h.Logins() - before; starts > 8 {
		t.Errorf("%d starts in 2 seconds", starts)
	}
	h.Fail("")
	for deadline := time.Now().Add(time.Minute); sign(key) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the key does not sign again")
		}
	}
}

// TestWrongPIN is tried once, however often the server starts; until the file changes.
func TestWrongPIN(t *testing.T) {
	h := newHSM(t)
	check(t, os.WriteFile(h.PINPath, []byte("wrong\n"), 0o600))
	for range 5 {
		if _, err := h.try(t); err == nil || !strings.Contains(err.Error(), "refuse") || strings.Contains(err.Error(), "wrong\n") {
			t.Fatalf("open = %v", err)
		}
	}
	if n := h.Logins(); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	check(t, os.WriteFile(h.PINPath, []byte(softhsmtest.PIN), 0o600))
	h.key(t, "")
	check(t, os.Chmod(h.PINPath, 0o640))
	if _, err := h.try(t); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open with a PIN that a group may read = %v", err)
	}
}

// TestPINChangedMeanwhile: logging in again is one try, too.
func TestPINChangedMeanwhile(t *testing.T) {
	h := newHSM(t)
	_, key := h.key(t, "")
	h.Refuse(true)
	before := h.Logins()
	h.Fail("forget")
	for range 5 {
		if err := sign(key); err == nil || !strings.Contains(err.Error(), "refuse") {
			t.Errorf("sign = %v", err)
		}
	}
	if n := h.Logins() - before; n != 1 {
		t.Errorf("the PIN was tried %d times", n)
	}
	h.Refuse(false)
	check(t, os.WriteFile(h.PINPath, []byte(softhsmtest.PIN), 0o600)) // as touch does
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := sign(key); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestHSMMissing(t *testing.T) {
	good := newHSM(t)
	slot, withoutCgo := uint64(1<<40), softhsmtest.HelperWithoutCgo(t)
	for want, change := range map[string]func(*pkcs11.Config){
		"no such file":         func(c *pkcs11.Config) { c.Open.Module = "/nowhere.so" },
		"can not be loaded":    func(c *pkcs11.Config) { c.Open.Module = c.PINFile.Path },
		"0 tokens":             func(c *pkcs11.Config) { c.Open.TokenLabel = "another" },
		`"assay test" in slot`: func(c *pkcs11.Config) { c.Open.Slot = &slot },
		"make build-pkcs11":    func(c *pkcs11.Config) { c.Program = "/nowhere" },
		"exit status 1":        func(c *pkcs11.Config) { c.Program = "/bin/false" },
		"built without cgo":    func(c *pkcs11.Config) { c.Program = withoutCgo },
		"pin_path":             func(c *pkcs11.Config) { c.PINFile.Path = "/nowhere" },
	} {
		h := *good
		change(&h.Config)
		if _, err := h.try(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open = %v, want %q", err, want)
		}
	}
	if n := good.Logins(); n != 0 {
		t.Errorf("the PIN was tried %d times", n)
	}
}

// TestHSMKeys: keys can not be read, another server's are not ours, and none stays.
func TestHSMKeys(t *testing.T) {
	h := newHSM(t)
	m, key := h.key(t, keys.RSA2048)
	labels := h.Labels()
	for _, want := range []string{"assay/one/a", "sensitive, always sensitive, never extractable, local"} {
		if !strings.Contains(labels, want) {
			t.Errorf("pkcs11-tool does not say %q:\n%s", want, labels)
		}
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256}); err == nil {
		t.Error("signed by PSS")
	}
	other := *h
	other.prefix = "assay/two/"
	two := other.open(t)
	if names, err := two.List(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("another server's List = %q, %v", names, err)
	}
	if _, err := two.Open(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another server's Open = %v", err)
	}
	_, err := two.Generate(t.Context(), "b", "")
	check(t, err)
	if names, err := m.List(t.Context()); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("List = %q, %v", names, err)
	}
	check(t, m.Delete(t.Context(), "a"))
	if err := sign(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sign with a deleted key = %v", err)
	}
	if labels := h.Labels(); strings.Contains(labels, "assay/one") || !strings.Contains(labels, "assay/two/b") {
		t.Errorf("after Delete there is:\n%s", labels)
	}
}

// TestReadableKey: a key that could leave the token is not used.
func TestReadableKey(t *testing.T) {
	h := newHSM(t)
	out, err := exec.Command("pkcs11-tool", "--module", softhsmtest.SoftHSM, "--token-label", h.Label, "--login", "--pin", softhsmtest.PIN,
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", h.prefix+"a", "--extractable").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := h.open(t)
	if _, err := m.Open(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "could be read") {
		t.Errorf("Open = %v", err)
	}
}

func BenchmarkSign(b *testing.B) {
	h := newHSM(b)
	m := h.open(b)
	for _, kind := range keys.Types {
		key, err := m.Generate(b.Context(), "b-"+string(kind), kind)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(string(kind), func(b *testing.B) {
			for b.Loop() {
				if err := sign(key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
