// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
)

// TestMemory: with the least memory one long log is judged at a time, and sixteen short ones.
func TestMemory(t *testing.T) {
	m := NewMemory(0)
	hold := func(wait time.Duration, size int64) (*held, error) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		h := &held{memory: m}
		return h, h.grow(ctx, size)
	}
	first, err := hold(time.Second, shortLog+1)
	must(t, err)
	must(t, first.grow(t.Context(), 2*shortLog)) // it has room already
	second, err := hold(20*time.Millisecond, shortLog+1)
	if !errors.Is(err, errBusy) {
		t.Fatalf("a second long log: %v", err)
	}
	second.release() // it holds room for a short one
	var short []*held
	for range LeastMemory/2/shortLog - 1 {
		h, err := hold(time.Second, shortLog)
		must(t, err)
		short = append(short, h)
	}
	if _, err := hold(20*time.Millisecond, 1); !errors.Is(err, errBusy) {
		t.Fatalf("one more short log: %v", err)
	}
	// Who waits gets room as soon as another ends.
	time.AfterFunc(50*time.Millisecond, first.release)
	h, err := hold(10*time.Second, shortLog+1)
	must(t, err)
	for _, h := range append(short, h) {
		h.release()
		h.release() // once is enough
	}
	for range 2 {
		h, err := hold(time.Second, shortLog+1)
		must(t, err)
		h.release()
	}
}

// TestBusy: a machine with a long log is not let in while there is no room, is told why, and gets in later;
// one that is watched stays, though not fresh.
func TestBusy(t *testing.T) {
	const long = 2 * tpm.MaxIMAChunk / 4096 // entries of 4 KiB, so that the log comes in parts
	m, a := booted(t, "direct", nil)
	a.w.attestor.Memory = NewMemory(0)
	a.w.attestor.Continuous.Memory = a.w.attestor.Memory
	other := held{memory: a.w.attestor.Memory}
	all := int64(LeastMemory / 2 / shortLog)
	must(t, other.memory.short.Acquire(t.Context(), all))
	_, stop := a.watched()
	stop()
	for i := range long {
		m.Measure([32]byte{byte(i), byte(i >> 8), 1}, fmt.Sprintf("/%04000d", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var e *nodes.AttestError
	if err := a.attest(ctx); !errors.As(err, &e) || e.Fault != nodes.FaultBusy {
		t.Fatalf("without room: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	must(t, a.stream(ctx)) // until its time is over, not until the server has enough
	other.memory.short.Release(all)
	must(t, a.attest(t.Context()))
	if n := a.w.registry.Get(a.id); n.TPM.IMA.Entries < long {
		t.Errorf("%d entries", n.TPM.IMA.Entries)
	}
	if !other.memory.short.TryAcquire(all) {
		t.Error("room is held after the end")
	}
}
