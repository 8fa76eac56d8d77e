// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	agent = spiffeid.RequireFromPath(td, "/spire/agent/tpm/1")
	pcrs  = []int{0, 4, 7}
)

// chip seals by a software TPM.
type chip struct{ *device.Device }

func (c chip) Seal(secret []byte) ([]byte, error)   { return c.Device.Seal(pcrs, secret) }
func (c chip) Unseal(sealed []byte) ([]byte, error) { return c.Device.Unseal(pcrs, sealed) }

func power(t *testing.T, p *swtpmtest.TPM) chip {
	t.Helper()
	d, err := device.Open(t.Context(), device.Config{Path: p.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return chip{d}
}

func bundle(t testing.TB) *trust.Bundle {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b, err := trust.New(spiffebundle.FromX509Authorities(td, []*x509.Certificate{c}), trust.Tainted{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// secret is what must not be in a sealed file.
var secret = []byte("the private key of a workload")

func sample(t testing.TB, now time.Time) Kept {
	at := time.Unix(now.Unix(), 0).UTC()
	e := &selectors.Entry{ID: "e", SPIFFEID: spiffeid.RequireFromPath(td, "/w"), ParentID: agent, Selectors: []selectors.Selector{{Type: "unix", Value: "uid:1"}},
		X509SVIDTTL: time.Hour, JWTSVIDTTL: time.Minute, FederatesWith: []string{"other.org"}, Admin: true, Downstream: true, StoreSVID: true,
		DNSNames: []string{"a", "b"}, Hint: "h", ExpiresAt: at.Add(time.Hour), CreatedAt: at, Revision: 7,
		Attributes: &selectors.EntryAttributes{DisableX509SVIDPrefetch: true, JWTSVIDIncludeJTI: true},
		Options:    selectors.EntryOptions{PerProcess: true, Prefetch: true, KeyType: selectors.KeyRSA2048, Grace: time.Minute}}
	return Kept{Agent: agent, Heard: at, Kept: svids.Kept{Revision: 3, Synced: at, Entries: []*selectors.Entry{e}, Own: bundle(t), Foreign: []*trust.Bundle{bundle(t)},
		SVIDs: []svids.KeptSVID{{EntryID: "e", Revision: 7, ID: e.SPIFFEID, Chain: []byte{1, 2}, Key: bytes.Clone(secret)}}}}
}

// store is one whose clock the test holds.
func store(t *testing.T, dir string, s Sealer, now *time.Time) *Store {
	t.Helper()
	return New(Config{Dir: dir, Sealer: s, MaxAge: time.Hour, Now: func() time.Time { return *now }})
}

// Every field of an entry must be set, or a new one could be lost unseen.
func TestRoundTrip(t *testing.T) {
	now := time.Now()
	for name, sealer := range map[string]Sealer{"disk": nil, "tpm": power(t, swtpmtest.New(t))} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := store(t, dir, sealer, &now)
			if _, err := s.Load(agent); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("nothing was saved: %v", err)
			}
			want := sample(t, now)
			for i, v := 0, reflect.ValueOf(*want.Entries[0]); i < v.NumField(); i++ {
				if v.Field(i).IsZero() {
					t.Errorf("the sample has no %s", v.Type().Field(i).Name)
				}
			}
			if err := s.Save(want); err != nil {
				t.Fatal(err)
			}
			got, err := s.Load(agent)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Own.Equal(want.Own) || len(got.Foreign) != 1 || !got.Foreign[0].Equal(want.Foreign[0]) {
				t.Error("other bundles")
			}
			got.Own, got.Foreign, want.Own, want.Foreign = nil, nil, nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			info, err := os.Stat(filepath.Join(dir, "keep.bin"))
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			if err := s.Remove(); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left over: %v, %v", left, err)
			}
			if err := s.Remove(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNotFor(t *testing.T) {
	now := time.Now()
	s := store(t, t.TempDir(), nil, &now)
	if err := s.Save(sample(t, now)); err != nil {
		t.Fatal(err)
	}
	refuses := func(what string, id spiffeid.ID) {
		t.Helper()
		if k, err := s.Load(id); !errors.Is(err, ErrNotFor) || k.Own != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refuses("another agent", spiffeid.RequireFromPath(td, "/spire/agent/tpm/2"))
	refuses("no agent", spiffeid.ID{})
	began := now
	now = began.Add(59 * time.Minute)
	if _, err := s.Load(agent); err != nil {
		t.Error(err)
	}
	now = began.Add(61 * time.Minute)
	refuses("too old", agent)
	now = began.Add(-2 * time.Minute)
	refuses("from the future", agent)
	now = began
	k := sample(t, now)
	k.Own = nil
	if err := s.Save(k); err != nil {
		t.Fatal(err)
	}
	refuses("without a bundle", agent)
}

func TestTampered(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	p := swtpmtest.New(t)
	s := store(t, dir, power(t, p), &now)
	if err := s.Save(sample(t, now)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "keep.bin")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(whole, secret) || bytes.Contains(whole, []byte("spiffe://")) {
		t.Error("the file can be read")
	}
	put := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for at := 0; at < len(whole); at += 1 + len(whole)/60 {
		data := bytes.Clone(whole)
		data[at] ^= 0x10
		put(data)
		if k, err := s.Load(agent); err == nil || len(k.SVIDs)+len(k.Entries) > 0 {
			t.Errorf("byte %d is another, and it was read", at)
		}
	}
	for _, n := range []int{0, 5, len(magic), len(magic) + 2, 200, len(whole) - 1} {
		put(whole[:n])
		if _, err := s.Load(agent); err == nil {
			t.Errorf("%d bytes of it were read", n)
		}
	}
	if err := store(t, dir, nil, &now).Save(sample(t, now)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(agent); err == nil || !strings.Contains(err.Error(), "another offline_restart") {
		t.Errorf("a file that no TPM sealed, for one that this TPM did: %v", err)
	}
	put(whole)
	if _, err := store(t, dir, nil, &now).Load(agent); err == nil || !strings.Contains(err.Error(), "another offline_restart") {
		t.Errorf("a sealed file without a TPM: %v", err)
	}
	if _, err := s.Load(agent); err != nil {
		t.Error(err)
	}
}

// The file of a machine opens there, after the same boot, and nowhere else.
func TestBoots(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	p, other := swtpmtest.New(t), swtpmtest.Other(t)
	p.Extend(4, [32]byte{1})
	other.Extend(4, [32]byte{1})
	if err := store(t, dir, power(t, p), &now).Save(sample(t, now)); err != nil {
		t.Fatal(err)
	}
	if _, err := store(t, dir, power(t, other), &now).Load(agent); err == nil {
		t.Error("another TPM opened it")
	}
	p.Off()
	p.On()
	p.Extend(4, [32]byte{2})
	if _, err := store(t, dir, power(t, p), &now).Load(agent); !errors.Is(err, device.ErrOtherState) {
		t.Errorf("after another boot: %v", err)
	}
	p.Off()
	p.On()
	p.Extend(4, [32]byte{1})
	if k, err := store(t, dir, power(t, p), &now).Load(agent); err != nil || len(k.SVIDs) != 1 {
		t.Errorf("after the same boot: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "gone")
	if err := store(t, dir, nil, &now).Save(sample(t, now)); err == nil {
		t.Error("saved to nowhere")
	}
}

func FuzzDecode(f *testing.F) {
	s := New(Config{MaxAge: time.Hour, Now: time.Now})
	good, err := s.encode(Kept{Agent: agent})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(magic + "\x01\x00\x20"))
	f.Add([]byte(magic + "\x02\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := s.decode(data)
		if err != nil {
			if k.Agent != (spiffeid.ID{}) || k.SVIDs != nil {
				t.Error("an error, and something beside it")
			}
			return
		}
		again, err := s.encode(k)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.decode(again); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzText is of what stands behind the encryption: in a file of offline_restart = "disk" anybody may have written it.
func FuzzText(f *testing.F) {
	f.Add([]byte(`{"agent":"spiffe://example.org/spire/agent/x","heard":"2026-11-22T06:00:00Z","entries":[null],"own":null,"foreign":[null],"svids":[{"id":"spiffe://example.org/w"}]}`))
	f.Add([]byte(`{"agent":"","own":{"trust_domain":"example.org","bundle":{"keys":[]}}}`))
	f.Add([]byte(`null`))
	s := New(Config{MaxAge: 1 << 62, Now: time.Now})
	f.Fuzz(func(t *testing.T, text []byte) {
		data, err := s.seal(text)
		if err != nil {
			t.Fatal(err)
		}
		k, err := s.decode(data)
		if err != nil {
			return
		}
		if k.Own == nil {
			return
		}
		if _, _, err := svids.New(svids.Config{Logger: slog.New(slog.DiscardHandler), Now: time.Now}).Restore(k.Kept); err != nil {
			t.Log(err)
		}
	})
}
