// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/ima"
)

// Memory bounds what the IMA logs take that machines send in several parts and nobody judged yet. Half of
// it is for logs of at most shortLog, in steps of that; the other half for the few that are longer, in
// steps of the longest. Who holds a step of the second waits for nothing more, so all get their turn.
type Memory struct{ short, long *semaphore.Weighted }

// shortLog is enough for some 40,000 files.
const shortLog = 4 << 20

// LeastMemory lets one log of the longest be judged at a time.
const LeastMemory = 2 * ima.MaxChunk

// memoryWithin is how long an attestation waits for others to end.
const memoryWithin = 20 * time.Second

// NewMemory makes one of so many bytes, at least LeastMemory.
func NewMemory(bytes int64) *Memory {
	half := max(bytes, LeastMemory) / 2
	return &Memory{semaphore.NewWeighted(half / shortLog), semaphore.NewWeighted(half / ima.MaxChunk)}
}

var errBusy = &nodes.AttestError{Fault: nodes.FaultBusy, Text: "failed to attest: the IMA logs of other machines take all the memory that this server has for them; " +
	"try again later, or set ima_memory_mib higher in the server's block tpm, or let machines measure less"}

// held is what one attestation holds. Release it in the end.
type held struct {
	memory      *Memory // nil has no bounds
	short, long bool
}

// grow makes room for a log of size bytes; it returns errBusy if there is none in time.
func (h *held) grow(ctx context.Context, size int64) error {
	if h.memory == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, memoryWithin)
	defer cancel()
	if !h.short {
		if h.memory.short.Acquire(ctx, 1) != nil {
			return errBusy
		}
		h.short = true
	}
	if size > shortLog && !h.long {
		if h.memory.long.Acquire(ctx, 1) != nil {
			return errBusy
		}
		h.long = true
	}
	return nil
}

func (h *held) release() {
	if h.short {
		h.memory.short.Release(1)
	}
	if h.long {
		h.memory.long.Release(1)
	}
	h.short, h.long = false, false
}
