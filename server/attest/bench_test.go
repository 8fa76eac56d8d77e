// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
	"github.com/assay-id/assay/tpm/verify"
)

// BenchmarkThousandMachines has 1,000 machines answer for their TPMs, each once in a second instead of
// once in a minute, and tells how much of a core the server would need for them at the interval
// of a minute. What the machines themselves compute is measured first and taken off.
func BenchmarkThousandMachines(b *testing.B) {
	const machines, spki = 1000, "the agent's key"
	registry, err := nodes.Open(b.Context(), nodes.Config{Store: storetest.Open(b), Logger: slog.New(slog.DiscardHandler)})
	must(b, err)
	defer registry.Close()
	c := &Continuous{Nodes: registry, Interval: time.Second, Now: time.Now, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)}
	pcrs := map[int]selectors.Digest{}
	for _, n := range verify.DefaultPCRs {
		pcrs[n] = selectors.Digest{}
	}
	p := swtpmtest.NewPretender(b)
	q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize), PCRs: verify.DefaultPCRs}
	answer := func() []byte {
		data, err := tpm.Encode(p.Requote(b, q, []byte(spki), binding))
		must(b, err)
		return data
	}
	before := cpu()
	for range machines {
		answer()
	}
	own := (cpu() - before) / machines

	var quotes atomic.Int64
	ctx, cancel := context.WithCancel(b.Context())
	var streams sync.WaitGroup
	for i := range machines {
		id := spiffeid.RequireFromString(fmt.Sprintf("spiffe://example.org/spire/agent/tpm/%d", i))
		m := swtpmtest.NewPretender(b)
		_, err := registry.Attested(b.Context(), nodes.Attestation{ID: id, Type: tpm.AttestorType, CanReattest: true,
			TPM: &nodes.TPMState{AK: m.AK, Quoted: verify.Quoted{PCRs: pcrs, ResetCount: 1}, Facts: selectors.NodeFacts{EKHash: selectors.Digest{byte(i), byte(i >> 8), 1}}}}, "1", time.Now().Add(time.Hour))
		must(b, err)
		streams.Go(func() {
			err := c.Run(ctx, id, []byte(spki), binding, func(_ context.Context, data []byte) ([]byte, error) {
				q, err := tpm.Decode[tpm.Question](data)
				if err != nil {
					return nil, err
				}
				quotes.Add(1)
				return tpm.Encode(m.Requote(b, q, []byte(spki), binding))
			})
			if err != nil {
				b.Error(err)
			}
		})
	}
	time.Sleep(2 * time.Second) // the first questions come at once
	before, first := cpu(), quotes.Load()
	for b.Loop() {
		time.Sleep(time.Second)
	}
	n := quotes.Load() - first
	each := (cpu()-before)/time.Duration(max(n, 1)) - own
	cancel()
	streams.Wait()
	b.ReportMetric(float64(each.Microseconds()), "µs-cpu/quote")
	b.ReportMetric(100*float64(each)*machines/float64(time.Minute), "%core-for-1000/min")
	b.ReportMetric(float64(n)/float64(b.N), "quotes/op")
}

// cpu is what this process has used of the processors.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
