// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
)

// refusal is an error whose text says in a few words why the kernel refused. The library's own
// text guesses at MEMLOCK whenever it sees EPERM.
type refusal struct{ cause error }

func refuse(cause error) error { return &refusal{cause} }

func (r *refusal) Unwrap() error { return r.cause }

func (r *refusal) Error() string {
	var verifier *ebpf.VerifierError
	if errors.As(r.cause, &verifier) {
		for i := len(verifier.Log) - 1; i >= 0; i-- {
			if line := strings.TrimSpace(verifier.Log[i]); line != "" && !strings.HasPrefix(line, "processed ") {
				return "the verifier says: " + line
			}
		}
	}
	var errno syscall.Errno
	switch {
	case errors.As(r.cause, &errno):
		return "the kernel says: " + errno.Error()
	case errors.Is(r.cause, ebpf.ErrNotSupported):
		return "this kernel does not know it"
	}
	return r.cause.Error()
}
