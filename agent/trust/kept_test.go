// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// full is a bundle with something of everything.
func full(t testing.TB) *Bundle {
	t.Helper()
	key := newKey(t)
	one, two := issue(t, "one", []byte{1}, nil, key), issue(t, "two", []byte{2}, nil, key)
	all := spiffebundle.FromX509Authorities(td, []*x509.Certificate{one, two})
	if err := all.AddJWTAuthority("j", key.Public()); err != nil {
		t.Fatal(err)
	}
	if err := all.AddWITAuthority("w", key.Public()); err != nil {
		t.Fatal(err)
	}
	all.SetSequenceNumber(7)
	b, err := New(all, Tainted{X509: []*x509.Certificate{two}, JWT: []string{"j"}, WIT: []string{"w"}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ReadRevoked([][]byte{list(t, []byte{1}, 1, 300)})
	if err != nil {
		t.Fatal(err)
	}
	return b.WithRevoked(r)
}

func TestKept(t *testing.T) {
	whole := full(t)
	for name, b := range map[string]*Bundle{"whole": whole, "no lists": whole.WithRevoked(nil), "empty lists": whole.WithRevoked(&Revoked{})} {
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var got Bundle
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !got.Equal(b) || !bytes.Equal(got.X509(), b.X509()) || !bytes.Equal(got.JWKS(), b.JWKS()) || !bytes.Equal(got.WITKeys(), b.WITKeys()) {
			t.Errorf("%s: %s", name, data)
		}
	}
}

func FuzzKept(f *testing.F) {
	data, err := json.Marshal(full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"trust_domain":"example.org","bundle":{"keys":[]},"crls":[]}`))
	f.Add([]byte(`{"crls":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var b Bundle
		if json.Unmarshal(data, &b) != nil || b.all == nil { // JSON's null changes nothing
			return
		}
		again, err := json.Marshal(&b)
		if err != nil {
			t.Fatal(err)
		}
		var got Bundle
		if err := json.Unmarshal(again, &got); err != nil || !got.Equal(&b) {
			t.Fatalf("%s: %v", again, err)
		}
	})
}
