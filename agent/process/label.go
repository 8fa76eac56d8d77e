// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"slices"
	"strings"
)

// labelled says that a security module of this kernel labels processes.
var labelled = hasLabels()

func hasLabels() bool {
	list, err := os.ReadFile("/sys/kernel/security/lsm")
	return err == nil && slices.ContainsFunc(strings.Split(strings.TrimSpace(string(list)), ","), func(name string) bool {
		return name == "apparmor" || name == "selinux" || name == "smack"
	})
}

// SecurityLabel returns the process's label as its security module writes it
// (proc_pid_attr(5)), "" where none labels processes.
func (p *Process) SecurityLabel() (string, error) {
	if !labelled {
		return "", nil
	}
	raw, err := os.ReadFile(p.proc("attr/current"))
	if err := p.after("reading the security label", err); err != nil {
		return "", err
	}
	return parseLabel(raw), nil
}

// parseLabel cuts the line end or NUL that security modules write behind a label.
func parseLabel(raw []byte) string { return strings.TrimRight(string(raw), "\n\x00") }
