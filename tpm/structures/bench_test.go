// SPDX-License-Identifier: Apache-2.0

package structures

import (
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// BenchmarkQuote reads a TPMS_ATTEST, by this package and by go-tpm with the proof of its spelling.
func BenchmarkQuote(b *testing.B) {
	data, err := os.ReadFile("../eventlog/testdata/secure/quote.attest")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if _, err := ParseAttest(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("go-tpm", func(b *testing.B) {
		for b.Loop() {
			if _, ok := canonical[tpm2.TPMSAttest](data); !ok {
				b.Fatal("refused")
			}
		}
	})
}
