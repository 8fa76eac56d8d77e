// SPDX-License-Identifier: Apache-2.0

package bpf

import "errors"

// Why Load failed; test with errors.Is. The error's text is one sentence for the operator.
var (
	ErrPrivilege = errors.New("missing capability")
	ErrNoBTF     = errors.New("no kernel BTF")
	ErrNotBPFFS  = errors.New("not on a BPF file system")
	ErrInUse     = errors.New("in use by another agent")
	ErrNoCgroup2 = errors.New("no cgroup v2 mount")
	ErrKernel    = errors.New("kernel without the needed hooks")
	ErrTier      = errors.New("tier below the configured minimum")
)

// problem is an error for the operator: one sentence that says what to do.
type problem struct {
	sentence string
	kind     error
	cause    error // may be nil
}

func (p *problem) Error() string { return p.sentence }

func (p *problem) Unwrap() []error {
	if p.cause == nil {
		return []error{p.kind}
	}
	return []error{p.kind, p.cause}
}
