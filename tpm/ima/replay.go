// SPDX-License-Identifier: Apache-2.0

package ima

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/assay-id/assay/tpm/octets"
)

// State is how far a machine's log has been replayed since its boot. The zero State is the
// beginning. It is a value that can be stored; it must be forgotten when the machine boots
// again (when the TPM's resetCount changes).
type State struct {
	// PCR is the replayed value of PCR 10.
	PCR Digest `json:"pcr"`
	// Entries and Offset are how many entries, and bytes of the log, that took. The machine need
	// not send what comes before Offset again.
	Entries uint64 `json:"entries"`
	Offset  int64  `json:"offset"`
	// Violations is how many of the entries were violations.
	Violations uint64 `json:"violations,omitempty"`
	// BootAggregate is the digest of the entry with which the log begins: SHA-256(PCR 0 ‖ … ‖ PCR 9) as
	// the kernel saw them before user space ran (eventlog.BootAggregate). Zero if the log does not begin with
	// one, or if another kernel was started by kexec: which one, the log does not say.
	BootAggregate Digest `json:"boot_aggregate,omitzero"`
	// Kernels counts the entries named boot_aggregate: each kernel, from the second on by kexec, makes one.
	// Root can make such a name, but can not take one away.
	Kernels uint64 `json:"kernels,omitempty"`
}

// ErrNotReached says that no prefix of the log leads to the quoted PCR 10: the log was changed,
// belongs to another boot or another machine, or is older than the quote.
var ErrNotReached = errors.New("IMA log: no part of it leads to the quoted PCR 10; the log was changed, is of another boot, or was read before the quote")

// Advance replays the log from where the state stands up to the quoted PCR 10, and returns
// the new state with the entries between. log begins at byte s.Offset of the machine's
// log. What it holds beyond the quote is not looked at: nothing vouches for it yet. If the
// quote is where the state stands already, there are no entries.
//
// On an error the state must not be advanced. ErrNotReached is among them.
func (s State) Advance(log []byte, quoted Digest) (State, []Entry, error) {
	if len(log) > MaxChunk {
		return s, nil, fmt.Errorf("IMA log: %d bytes at once; the limit is %d", len(log), MaxChunk)
	}
	var entries []Entry
	next, r := s, octets.Little(log)
	for next.PCR != quoted {
		if len(r.Rest) == 0 {
			return s, nil, ErrNotReached
		}
		e, digest, err := readEntry(&r)
		if err != nil {
			return s, nil, fmt.Errorf("IMA log: entry %d: %w", next.Entries, err)
		}
		e.Number = next.Entries
		next.add(&e, digest)
		next.Offset = s.Offset + int64(len(log)-len(r.Rest))
		entries = append(entries, e)
	}
	return next, entries, nil
}

// bootAggregate is the name of the entry that each kernel makes first.
const bootAggregate = "boot_aggregate"

func (s *State) add(e *Entry, digest Digest) {
	var both [2 * sha256.Size]byte
	copy(both[:sha256.Size], s.PCR[:])
	copy(both[sha256.Size:], digest[:])
	s.PCR = sha256.Sum256(both[:])
	s.Entries++
	if e.Violation {
		s.Violations++
	}
	if e.Name != bootAggregate {
		return
	}
	s.Kernels++
	s.BootAggregate = Digest{}
	if d, ok := e.SHA256(); ok && e.Number == 0 {
		s.BootAggregate = d
	}
}
