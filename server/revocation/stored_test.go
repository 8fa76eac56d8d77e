// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/assay-id/assay/server/store"
)

func listOf(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: now}}},
		&x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{0xab}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// What ended long ago goes, and nothing else.
func TestExpired(t *testing.T) {
	now := time.Now()
	v := newView()
	apply := func(key string, value any) {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.apply(store.Change{Key: key, Value: data, Revision: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for serial, end := range map[string]time.Duration{"1": -61 * time.Minute, "2": -59 * time.Minute, "3": time.Hour} {
		apply("r/revoked/ab/"+serial, Revocation{Record: Record{Authority: "ab", Serial: serial, NotAfter: now.Add(end)}})
	}
	apply("r/asked/answered", Request{At: now.Add(-2 * time.Minute)})
	apply("r/asked/just-answered", Request{At: now})
	apply("r/asked/waiting", Request{At: now.Add(-2 * time.Hour)})
	apply("r/asked/forgotten", Request{At: now.Add(-26 * time.Hour)})
	for _, id := range []string{"answered", "just-answered"} {
		apply("r/done/"+id+"/s1", Answer{})
		apply("r/done/"+id+"/s2", Answer{})
	}
	apply("r/done/waiting/s1", Answer{})
	apply("r/done/gone/s1", Answer{})
	apply("r/crl/ab", listFile{DER: listOf(t), NotAfter: now.Add(time.Hour)})
	got := v.expired(now, time.Hour, 24*time.Hour, []string{"s1", "s2"})
	slices.Sort(got)
	if want := []string{"r/asked/answered", "r/asked/forgotten", "r/done/gone/s1", "r/revoked/ab/1"}; !slices.Equal(got, want) {
		t.Errorf("expired = %q, want %q", got, want)
	}
	if got := v.expired(now.Add(2*time.Hour), time.Hour, 24*time.Hour, []string{"s1", "s2"}); !slices.Contains(got, "r/crl/ab") {
		t.Error("the list of an authority that has ended stays")
	}
}

func FuzzStored(f *testing.F) {
	rev, _ := json.Marshal(Revocation{Record: Record{Authority: "ab", Serial: "7", NotAfter: time.Unix(1_700_000_000, 0)}})
	lists, _ := json.Marshal(listFile{DER: listOf(f), NotAfter: time.Unix(1_700_000_000, 0)})
	f.Add("r/revoked/ab/7", rev)
	f.Add("r/crl/ab", lists)
	f.Add("r/asked/x", []byte(`{"scope":{"node":"n"},"at":"2026-01-01T00:00:00Z"}`))
	f.Add("r/done/x/s", []byte(`{"revoked":1}`))
	f.Add("r/later/x", []byte(`{}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		v := newView()
		_, _, err := v.apply(store.Change{Key: key, Value: value, Revision: 1})
		if err != nil && len(v.lists) > 0 {
			t.Error("an error, and a list")
		}
		for authority, all := range v.revoked {
			for serial, rev := range all {
				n, ok := readSerial(serial)
				if !ok || n.Sign() <= 0 || rev.Authority != authority || rev.key() != key {
					t.Errorf("%q: %+v", key, rev)
				}
			}
		}
		v.expired(time.Now(), time.Hour, time.Hour, nil)
		if _, _, err := v.apply(store.Change{Key: key, Revision: 2}); err != nil {
			t.Error(err)
		}
		if len(v.revoked)+len(v.asked)+len(v.lists) > 0 {
			t.Errorf("%q: something stays when it is deleted", key)
		}
	})
}
