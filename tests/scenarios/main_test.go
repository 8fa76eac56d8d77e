// SPDX-License-Identifier: Apache-2.0

// Package scenarios runs the real programs together on one machine: natively, and as a static
// test binary inside a guest (tests/guest). ASSAY_BIN is the folder of the programs; in a
// guest ASSAY_TPM and ASSAY_EK_CA name its TPM.
//
// The test binary plays the workloads, too: started with ASSAY_ROLE it is one (workload_test.go).
package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// shared is the machine that most tests use. Those that break theirs start one of their own.
var shared *machine

// self is the path of the test binary.
var self string

func TestMain(m *testing.M) {
	var err error
	if self, err = os.Executable(); err == nil {
		if role, ok := roles[os.Getenv("ASSAY_ROLE")]; ok {
			os.Exit(role())
		}
		shared, err = boot(context.Background(), dev.Options{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := errors.Join(shared.Close(), swtpmtest.Clean()); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
		code = 1
	}
	os.Exit(code)
}

func bin(name string) string {
	dir := os.Getenv("ASSAY_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(dir, name)
}

// nativeOnly leaves a test (no subtest) out in a guest, because of what a guest has or has
// not. The words are those that tests/guest knows.
func nativeOnly(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("ASSAY_GUEST") == "1" {
		t.Skip("native only: " + why)
	}
}
