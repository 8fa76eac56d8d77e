// SPDX-License-Identifier: Apache-2.0

package swtpm_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
