// SPDX-License-Identifier: Apache-2.0

package device

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// stopwatch measures the time that a TPM takes, and counts its commands.
type stopwatch struct {
	transport.TPMCloser
	spent    time.Duration
	commands map[uint32]int
}

func (s *stopwatch) Send(command []byte) ([]byte, error) {
	began := time.Now()
	response, err := s.TPMCloser.Send(command)
	s.spent += time.Since(began)
	s.commands[binary.BigEndian.Uint32(command[6:])]++
	return response, err
}

// BenchmarkAttestation is what an agent does for one attestation, and how much of the time is the
// TPM's own.
func BenchmarkAttestation(b *testing.B) {
	p := swtpmtest.New(b)
	d, err := Open(b.Context(), Config{Path: p.Path})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	key, err := d.NewKey([32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	hello, err := d.Hello(key)
	if err != nil {
		b.Fatal(err)
	}
	c := challenge(b, hello, make([]byte, tpm.SecretSize))
	c.PCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}
	measure := func(name string, once func() error) {
		b.Run(name, func(b *testing.B) {
			s := &stopwatch{TPMCloser: d.tpm, commands: map[uint32]int{}}
			d.tpm = s
			defer func() { d.tpm = s.TPMCloser }()
			n := 0
			for b.Loop() {
				if err := once(); err != nil {
					b.Fatal(err)
				}
				n++
			}
			total := 0
			for _, k := range s.commands {
				total += k
			}
			b.ReportMetric(float64(total)/float64(n), "commands/op")
			b.ReportMetric(float64(s.spent.Nanoseconds())/float64(n), "tpm-ns/op")
			b.ReportMetric(float64(b.Elapsed())/float64(s.spent), "wall/tpm")
		})
	}
	measure("attest", func() error {
		if _, err := d.NewKey([32]byte{2}); err != nil { // each attestation has a new key
			return err
		}
		_, err := d.Answer(key, c, binding)
		return err
	})
	q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize), PCRs: c.PCRs}
	measure("requote", func() error {
		_, err := d.Requote(key, q, binding, tpm.History{})
		return err
	})
}
