// SPDX-License-Identifier: Apache-2.0

// Package softhsmtest gives tests a real PKCS #11 token (SoftHSM 2), the real assay-pkcs11, and a module
// that stands before SoftHSM and fails when it is told to (testdata/faulty.c).
package softhsmtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// SoftHSM is Debian's.
const SoftHSM = "/usr/lib/softhsm/libsofthsm2.so"

// PIN of every token.
const PIN = "a PIN 4 tests"

// HSM has one token.
type HSM struct {
	t testing.TB
	// Module is SoftHSM behind the module that fails at will.
	Module, Label string
	// PINPath is a file with the right PIN.
	PINPath string
	dir     string
}

// New initialises a token. Its configuration is in the environment of the test, which is therefore not parallel.
func New(t testing.TB) *HSM {
	t.Helper()
	need(t)
	dir := t.TempDir()
	h := &HSM{t: t, Module: filepath.Join(dir, "faulty.so"), Label: "assay test", PINPath: filepath.Join(dir, "pin"), dir: dir}
	conf := filepath.Join(dir, "softhsm2.conf")
	h.write(conf, "directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	check(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
	t.Setenv("SOFTHSM2_CONF", conf)
	t.Setenv("FAULTY_DIR", dir)
	h.write(h.PINPath, PIN+"\n")
	command(t, "softhsm2-util", "--init-token", "--free", "--label", h.Label, "--pin", PIN, "--so-pin", "an SO PIN")
	_, here, _, _ := runtime.Caller(0)
	headers := strings.TrimSpace(command(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11"))
	command(t, "gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-I", headers, "-o", h.Module, filepath.Join(filepath.Dir(here), "testdata", "faulty.c"), "-ldl")
	return h
}

// Helper builds assay-pkcs11 and returns its path.
func Helper(t testing.TB) string {
	t.Helper()
	need(t)
	return build(t, "1")
}

// HelperWithoutCgo builds the assay-pkcs11 that only says what it lacks.
func HelperWithoutCgo(t testing.TB) string { t.Helper(); return build(t, "0") }

func build(t testing.TB, cgo string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "assay-pkcs11")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/assay-id/assay/cmd/assay-pkcs11")
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build assay-pkcs11: %v\n%s", err, out)
	}
	return path
}

// Fail has the module fail once, or from now on ("always …"), when it signs: "forget" closes all sessions, "logout" logs
// out, "device" is CKR_DEVICE_ERROR, "wrong" a wrong signature, "crash" and "hang" are that. "" ends it.
func (h *HSM) Fail(how string) { h.t.Helper(); h.write(filepath.Join(h.dir, "fault"), how) }

// Failed reports whether the fault has happened.
func (h *HSM) Failed() bool {
	data, _ := os.ReadFile(filepath.Join(h.dir, "fault"))
	return len(data) == 0
}

// Refuse has the token refuse every PIN, as if it had been changed, or take the right one again.
func (h *HSM) Refuse(refuse bool) {
	h.t.Helper()
	if path := filepath.Join(h.dir, "refuse"); refuse {
		h.write(path, "")
	} else {
		check(h.t, os.Remove(path))
	}
}

// Stick has every log-in hang.
func (h *HSM) Stick() { h.t.Helper(); h.write(filepath.Join(h.dir, "stuck"), "") }

// Logins is how often a PIN was tried.
func (h *HSM) Logins() int { data, _ := os.ReadFile(filepath.Join(h.dir, "logins")); return len(data) }

// Labels are those of the objects on the token, as another program sees them.
func (h *HSM) Labels() string {
	h.t.Helper()
	return command(h.t, "pkcs11-tool", "--module", SoftHSM, "--token-label", h.Label, "--login", "--pin", PIN, "--list-objects")
}

func (h *HSM) write(path, text string) {
	h.t.Helper()
	check(h.t, os.WriteFile(path+".new", []byte(text), 0o600))
	check(h.t, os.Rename(path+".new", path))
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, &stderr)
	}
	return string(out)
}

func need(t testing.TB) {
	t.Helper()
	_, err := os.Stat(SoftHSM)
	for _, program := range []string{"gcc", "softhsm2-util", "pkcs11-tool"} {
		_, missing := exec.LookPath(program)
		err = errors.Join(err, missing)
	}
	if err == nil {
		return
	}
	if os.Getenv("ASSAY_NO_SKIP") == "1" {
		t.Fatal(err)
	}
	t.Skipf("make setup-tests installs SoftHSM: %v", err)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
