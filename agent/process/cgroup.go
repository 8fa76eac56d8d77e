// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"fmt"
	"os"

	"github.com/containerd/cgroups/v3"
)

// onlyUnified says that this host has no cgroup v1 hierarchy to look at.
var onlyUnified = cgroups.Mode() == cgroups.Unified

// V1Cgroup returns the process's path in systemd's own hierarchy (name=systemd) on hosts in
// hybrid or legacy mode, as cgroups(7) shows it; "" on hosts with cgroup v2 alone.
func (p *Process) V1Cgroup() (string, error) {
	if onlyUnified {
		return "", nil
	}
	raw, err := os.ReadFile(p.proc("cgroup"))
	if err := p.after("reading the cgroups", err); err != nil {
		return "", err
	}
	return parseV1Cgroup(raw)
}

// parseV1Cgroup reads /proc/PID/cgroup.
func parseV1Cgroup(raw []byte) (string, error) {
	v1, _, err := cgroups.ParseCgroupFromReaderUnified(bytes.NewReader(raw))
	if err != nil {
		return "", fmt.Errorf("malformed /proc/PID/cgroup: %w", err)
	}
	return v1["name=systemd"], nil
}
