// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// certified makes the server sign by an authority that its certificates are valid by, and returns the bundle.
func (s *server) certified(t *testing.T, tainted bool) *trust.Bundle {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{9}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, s.key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.ca = ca
	all := spiffebundle.FromX509Authorities(td, []*x509.Certificate{ca})
	var taints trust.Tainted
	if tainted {
		taints.X509 = []*x509.Certificate{ca}
	}
	b, err := trust.New(all, taints)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// restarted is what a Manager leaves in a file, read again.
func restarted(t *testing.T, m *Manager) (k Kept) {
	t.Helper()
	data, err := json.Marshal(m.Kept())
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func blank(s Signer) *Manager {
	return New(Config{Signer: s, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
}

func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		own := s.certified(t, false)
		alone := entry("alone", 0)
		alone.Options.PerProcess = true
		m := blank(s)
		m.Trust(trust.Change{Own: own})
		m.Entries(true, []*selectors.Entry{entry("a", 3), alone}, nil, 42)
		first := m.Mark()
		fetched := fetch(t, m)
		if len(fetched) != 2 || m.Mark() == first {
			t.Fatalf("%d SVIDs, mark %v", len(fetched), m.Mark())
		}
		if _, err := m.JWT(t.Context(), pid(1), m.Match(set), []string{"aud"}); err != nil {
			t.Fatal(err)
		}
		old := fetched[0]
		want := bytes.Clone(old.Key)
		k := restarted(t, m)
		if len(k.SVIDs) != 1 || len(k.Entries) != 2 {
			t.Fatalf("kept %d SVIDs of %d entries", len(k.SVIDs), len(k.Entries))
		}

		time.Sleep(10 * time.Minute)
		s.fail(errors.New("away"))
		next := blank(s)
		served, renew, err := next.Restore(k)
		if err != nil || served != 1 {
			t.Fatalf("%d, %v", served, err)
		}
		<-next.Ready()
		if st := next.State(); st.Revision != 42 || !st.Synced.Equal(m.State().Synced) || st.Entries != 2 {
			t.Errorf("%+v", st)
		}
		got, err := next.x509(t.Context())
		if err == nil || len(got) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		v := got[0]
		if v.Serial != old.Serial || v.ID != old.ID || !bytes.Equal(v.Chain, old.Chain) || !bytes.Equal(v.Key, want) || !v.NotAfter.Equal(old.NotAfter) {
			t.Errorf("got %+v, had %+v", v, old)
		}
		sub := next.Subscribe(&process{set: set})
		defer sub.Close()
		s.fail(nil)
		renew()
		time.Sleep(taintSpread + granule)
		synctest.Wait()
		if !woken(sub) {
			t.Error("nobody was woken when the server came back")
		}
		if got := fetch(t, next)[0]; got.Serial == old.Serial {
			t.Error("the kept SVID is still served")
		}
	})
}

// What is kept is looked at as what the server sends is; and it ends.
func TestRestoreRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		own := s.certified(t, false)
		m := blank(s)
		m.Trust(trust.Change{Own: own})
		m.Entries(true, []*selectors.Entry{entry("a", 0), entry("b", 0)}, nil, 1)
		fetch(t, m)
		s.fail(errors.New("away"))
		other := newServer(t)
		for what, spoil := range map[string]func(k *Kept){
			"no entry":      func(k *Kept) { k.Entries = nil },
			"another entry": func(k *Kept) { k.SVIDs[0].EntryID, k.SVIDs[1].EntryID = k.SVIDs[1].EntryID, k.SVIDs[0].EntryID },
			"another ID": func(k *Kept) {
				k.Entries[0].SPIFFEID, k.Entries[1].SPIFFEID = k.Entries[1].SPIFFEID, k.Entries[0].SPIFFEID
			},
			"another revision":    func(k *Kept) { k.Entries[0].Revision, k.Entries[1].Revision = 1, 1 },
			"per process now":     func(k *Kept) { k.Entries[0].Options.PerProcess, k.Entries[1].Options.PerProcess = true, true },
			"exchanged keys":      func(k *Kept) { k.SVIDs[0].Key, k.SVIDs[1].Key = k.SVIDs[1].Key, k.SVIDs[0].Key },
			"no keys":             func(k *Kept) { k.SVIDs[0].Key, k.SVIDs[1].Key = nil, []byte{1} },
			"no chains":           func(k *Kept) { k.SVIDs[0].Chain, k.SVIDs[1].Chain = nil, []byte{1} },
			"another authority":   func(k *Kept) { k.Own = other.certified(t, false) },
			"a tainted authority": func(k *Kept) { k.Own = s.certified(t, true) },
		} {
			k := restarted(t, m)
			if len(k.SVIDs) != 2 {
				t.Fatalf("kept %d", len(k.SVIDs))
			}
			spoil(&k)
			if served, _, err := blank(s).Restore(k); served != 0 || err != nil {
				t.Errorf("%s: %d served, %v", what, served, err)
			}
		}
		for what, spoil := range map[string]func(k *Kept){
			"no bundle":        func(k *Kept) { k.Own = nil },
			"an empty entry":   func(k *Kept) { k.Entries[1] = nil },
			"an empty foreign": func(k *Kept) { k.Foreign = []*trust.Bundle{nil} },
		} {
			k := restarted(t, m)
			spoil(&k)
			next := blank(s)
			if _, _, err := next.Restore(k); err == nil || next.State().Entries != 0 {
				t.Errorf("%s: restored", what)
			}
		}

		k := restarted(t, m)
		next := blank(s)
		if served, _, err := next.Restore(k); err != nil || served != 2 {
			t.Fatalf("%d, %v", served, err)
		}
		sub := next.Subscribe(&process{set: set})
		defer sub.Close()
		time.Sleep(59 * time.Minute)
		if got, _ := next.x509(t.Context()); len(got) != 2 {
			t.Errorf("in their last minute %d are served", len(got))
		}
		time.Sleep(time.Minute)
		if got, err := next.x509(t.Context()); len(got) != 0 || err == nil {
			t.Errorf("after their end %d are served", len(got))
		}
		if served, _, err := blank(s).Restore(k); err != nil || served != 0 {
			t.Errorf("after their end %d are restored, %v", served, err)
		}
	})
}
