// SPDX-License-Identifier: Apache-2.0

package swtpm_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/swtpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

func TestStopLeavesNothingListening(t *testing.T) {
	tpm := swtpmtest.New(t)
	socket := strings.TrimPrefix(tpm.Path, "unix:")
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	tpm.Off()
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		t.Fatal("the socket still answers after Stop")
	}
	tpm.On()
	c, err = net.Dial("unix", socket)
	if err != nil {
		t.Fatalf("after a second start: %v", err)
	}
	c.Close()
}

func TestForQEMUListensOnTheControlSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "assay-swtpm-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := swtpm.StartForQEMU(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// CMD_GET_CAPABILITY (swtpm_ioctls(3)): a result of 0, and 8 bytes of capabilities.
	if _, err := c.Write([]byte{0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 12)
	if n, err := c.Read(answer); err != nil || n < 8 || !bytes.Equal(answer[:4], make([]byte, 4)) {
		t.Errorf("%x, %v", answer[:n], err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestMissingProgramNamesThePackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := swtpm.Manufacture(t.Context(), t.TempDir(), t.TempDir())
	if !errors.Is(err, swtpm.ErrMissing) || !strings.Contains(err.Error(), "apt-get install swtpm swtpm-tools") {
		t.Fatalf("got %v", err)
	}
	if _, err := swtpm.Start(t.Context(), t.TempDir()); !errors.Is(err, swtpm.ErrMissing) {
		t.Fatalf("got %v", err)
	}
}

func TestStartRefusesALongFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := swtpm.Start(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "shorter folder") {
		t.Fatalf("got %v", err)
	}
}
