// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMachineLogs(t *testing.T) {
	if got := MachineLogs("unix:/run/swtpm.sock"); got != (Logs{}) {
		t.Errorf("a TPM behind a socket has this machine's logs: %+v", got)
	}
	if got := MachineLogs("/dev/tpmrm1"); got.Boot != "/sys/kernel/security/tpm1/binary_bios_measurements" || got.IMA == "" || got.CommandLine != "/proc/cmdline" {
		t.Errorf("%+v", got)
	}
}

func TestLogsAreOptionalAndRead(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ima := bytes.Repeat([]byte{1, 2, 3}, tpm.MaxIMAChunk/2)
	logs := Logs{Boot: file("boot", []byte("log")), CommandLine: file("cmdline", []byte("ro quiet\n")), IMA: file("ima", ima), Program: file("agent", []byte("program"))}
	p := swtpmtest.New(t)
	for _, l := range []Logs{{}, {Boot: filepath.Join(dir, "none"), IMA: filepath.Join(dir, "none"), CommandLine: filepath.Join(dir, "none")}, logs} {
		d, err := Open(t.Context(), Config{Path: p.Path, Logs: &l})
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t, d, 1)
		hello, err := d.Hello(key)
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.Answer(key, challenge(t, hello, make([]byte, tpm.SecretSize)), binding)
		if err != nil {
			t.Fatal(err)
		}
		if l != logs {
			if e.BootLog != nil || e.IMA != nil || e.CommandLine != "" || e.AgentSHA256 != nil {
				t.Errorf("without logs: %+v", e)
			}
			continue
		}
		digest := sha256.Sum256([]byte("program"))
		if string(e.BootLog) != "log" || e.CommandLine != "ro quiet" || !e.IMAMore || !bytes.Equal(e.AgentSHA256, digest[:]) {
			t.Errorf("%d bytes of boot log, command line %q, more %v", len(e.BootLog), e.CommandLine, e.IMAMore)
		}
		whole := e.IMA
		for more := e.IMAMore; more; {
			c, err := d.More(tpm.More{Version: tpm.Version, IMAOffset: int64(len(whole))})
			if err != nil {
				t.Fatal(err)
			}
			whole, more = append(whole, c.IMA...), c.IMAMore
		}
		if !bytes.Equal(whole, ima) {
			t.Errorf("%d bytes of IMA log, want %d", len(whole), len(ima))
		}
	}
	large := Logs{Boot: file("large", make([]byte, tpm.MaxBootLog+1))}
	if _, err := large.BootLog(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a boot log over the limit: %v", err)
	}
}

// TestRequoteLeavesNoHandlesAndNoLockout asks many times, and wrongly.
func TestRequoteLeavesNoHandlesAndNoLockout(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	key := newKey(t, d, 1)
	q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize), PCRs: []int{0, 10}}
	for range 20 {
		if _, err := d.Requote(key, q, binding, tpm.History{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Requote(key, q, nil, tpm.History{}); err == nil || !strings.Contains(err.Error(), "TLS 1.3") {
		t.Errorf("without a binding: %v", err)
	}
	hello, err := d.Hello(key)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // credentials for others
		c := challenge(t, hello, make([]byte, tpm.SecretSize))
		c.CredentialBlob[len(c.CredentialBlob)-1] ^= 1
		if _, err := d.Answer(key, c, binding); err == nil {
			t.Fatal("a changed credential was activated")
		}
	}
	noHandles(t, d, "questions")
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1}.Execute(d.tpm)
	if err != nil {
		t.Fatal(err)
	}
	properties, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		t.Fatal(err)
	}
	if got := properties.TPMProperty[0]; got.Property != tpm2.TPMPTLockoutCounter || got.Value != 0 {
		t.Errorf("lockout counter: %+v", got)
	}
}
