// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package main

import (
	"crypto/sha256"
	"testing"

	"github.com/assay-id/assay/server/keys/pkcs11"
	"github.com/assay-id/assay/server/keys/softhsmtest"
)

// BenchmarkInProcess is what a signature costs without the way between two processes: compare it
// with BenchmarkSign of server/keys.
func BenchmarkInProcess(b *testing.B) {
	hsm := softhsmtest.New(b)
	token, err := open(pkcs11.Open{Module: hsm.Module, TokenLabel: hsm.Label, PIN: []byte(softhsmtest.PIN)})
	if err != nil {
		b.Fatal(err)
	}
	defer token.Close()
	if _, err := token.Generate("a", "ec-p256"); err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	for b.Loop() {
		if _, err := token.Sign("a", digest[:]); err != nil {
			b.Fatal(err)
		}
	}
}
