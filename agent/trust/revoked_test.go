// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// list is one of an authority with the given key id, of these serial numbers.
func list(t testing.TB, ski []byte, serials ...int64) []byte {
	t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, &x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: ski}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRevoked(t *testing.T) {
	key := newKey(t)
	one, two := issue(t, "one", []byte{1}, nil, key), issue(t, "two", []byte{2}, nil, key)
	plain, err := New(spiffebundle.FromX509Authorities(td, []*x509.Certificate{one, two}), Tainted{})
	if err != nil {
		t.Fatal(err)
	}
	lists := [][]byte{list(t, []byte{1}, 1, 300), list(t, []byte{2}, 7)}
	r, err := ReadRevoked(lists)
	if err != nil {
		t.Fatal(err)
	}
	b := plain.WithRevoked(r)
	of := func(ski byte, serial int64) *x509.Certificate {
		return &x509.Certificate{AuthorityKeyId: []byte{ski}, SerialNumber: big.NewInt(serial)}
	}
	for _, c := range []struct {
		chain []*x509.Certificate
		want  bool
	}{
		{[]*x509.Certificate{of(1, 1)}, true}, {[]*x509.Certificate{of(1, 300)}, true}, {[]*x509.Certificate{of(2, 7)}, true},
		{[]*x509.Certificate{of(2, 1)}, false}, {[]*x509.Certificate{of(1, 7)}, false}, {[]*x509.Certificate{of(3, 1)}, false},
		{[]*x509.Certificate{of(1, 2), of(2, 7)}, true}, {nil, false},
	} {
		if got := b.TaintsChain(c.chain); got != c.want || plain.TaintsChain(c.chain) {
			t.Errorf("%v: %t, want %t", c.chain, got, c.want)
		}
	}
	if len(b.CRLs()) != 2 || len(plain.CRLs()) != 0 || !bytes.Equal(b.X509(), plain.X509()) {
		t.Error("the lists of the two bundles")
	}
	turned, err := ReadRevoked([][]byte{lists[1], lists[0]})
	if err != nil || !b.Equal(plain.WithRevoked(turned)) {
		t.Error("the order of the lists counts")
	}
	empty, err := ReadRevoked(nil)
	if err != nil || b.Equal(plain) || plain.Equal(b) || b.Equal(plain.WithRevoked(empty)) || !plain.Equal(plain.WithRevoked(nil)) {
		t.Error("lists do not count in comparison")
	}
	if _, err := ReadRevoked([][]byte{lists[0], {1}}); err == nil {
		t.Error("read what is no list")
	}
}

func FuzzReadRevoked(f *testing.F) {
	f.Add(list(f, []byte{1}, 1, 2))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := ReadRevoked([][]byte{der})
		if err == nil && (len(r.lists) != 1 || !r.equal(r)) {
			t.Errorf("%x: %+v", der, r)
		}
	})
}
