// SPDX-License-Identifier: Apache-2.0

package member

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRenewLeaf(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	s := Spec{Name: "a", Address: "10.0.0.1:8082", TrustDomain: "example.org"}
	a, err := NewAuthority(s.TrustDomain, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Write(dir); err != nil {
		t.Fatal(err)
	}
	named := s
	named.Address = "store.example.org:8082"
	another, err := NewAuthority(s.TrustDomain, now)
	if err != nil {
		t.Fatal(err)
	}
	serial := ""
	for _, step := range []struct {
		what   string
		spec   Spec
		at     time.Time
		before func() error
		want   bool
	}{
		{"there is none", s, now, nil, true},
		{"it is new", s, now.Add(14 * 24 * time.Hour), nil, false},
		{"half of its life is over", s, now.Add(15*24*time.Hour + time.Second), nil, true},
		{"another address", named, now.Add(16 * 24 * time.Hour), nil, true},
		{"the same address", named, now.Add(16 * 24 * time.Hour), nil, false},
		{"another authority", named, now.Add(16 * 24 * time.Hour), func() error { return another.Write(dir) }, true},
	} {
		if step.before != nil {
			if err := step.before(); err != nil {
				t.Fatal(err)
			}
		}
		renewed, err := step.spec.RenewLeaf(dir, step.at)
		if err != nil || renewed != step.want {
			t.Errorf("%s: renewed %v, %v", step.what, renewed, err)
		}
		path := filepath.Join(dir, peerDir, leafFile)
		pair, err := tls.LoadX509KeyPair(path, path)
		if err != nil {
			t.Fatal(err)
		}
		got := pair.Leaf.SerialNumber.String()
		if (got != serial) != step.want {
			t.Errorf("%s: the certificate has changed: %v", step.what, got != serial)
		}
		serial = got
		if err := pair.Leaf.VerifyHostname("member.example.org"); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{caFile, keyFile, leafFile} {
		if st, err := os.Stat(filepath.Join(dir, peerDir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, st.Mode(), err)
		}
	}
}

func TestPeerURLs(t *testing.T) {
	for _, c := range []struct{ name, address, url, listen string }{
		{"", "", "unix://peer.sock", "unix://peer.sock"},
		{"a", "10.0.0.1:8082", "https://10.0.0.1:8082", "https://10.0.0.1:8082"},
		{"a", "[::1]:8082", "https://[::1]:8082", "https://[::1]:8082"},
		{"a", "store.example.org:8082", "https://store.example.org:8082", "https://0.0.0.0:8082"},
	} {
		s := Spec{Name: c.name, Address: c.address}
		if s.PeerURL() != c.url || s.listenURL() != c.listen {
			t.Errorf("%+v: %s, %s", s, s.PeerURL(), s.listenURL())
		}
	}
}
