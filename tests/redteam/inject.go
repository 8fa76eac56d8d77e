// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Dynamic is a small dynamically linked program; its copy is the victim of the attacks by
// libraries.
const Dynamic = "/bin/sleep"

// BuildLibraries compiles inject.c into preload.so and audit.so.
func BuildLibraries(ctx context.Context, source, dir string) error {
	for name, define := range map[string]string{"preload.so": "PRELOAD", "audit.so": "AUDIT"} {
		cmd := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O2", "-D"+define, "-o", filepath.Join(dir, name), source)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s: %w: %s", name, err, bytes.TrimSpace(out))
		}
	}
	return nil
}
