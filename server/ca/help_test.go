// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"crypto/elliptic"
	"encoding/hex"
	"encoding/pem"
	"os"
	"testing"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/store"
)

var p256 = elliptic.P256()

func ski(id []byte) string { return hex.EncodeToString(id) }

func decodePEM(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s holds no PEM", path)
	}
	return block.Bytes
}

// taintElsewhere taints a JWT authority as a server that has it in its old slot would.
func taintElsewhere(t *testing.T, s *store.Store, kid string) {
	t.Helper()
	if _, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: bundle.TaintKey(ca.JWT, kid), Value: []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}
}
