// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
)

var kinds = []ca.Kind{ca.X509, ca.JWT, ca.WIT}

// disaster strikes at one write, to the store or to the keys, and, if it is a crash, at all after it.
type disaster struct {
	mu    sync.Mutex
	at    int  // the number of the write; none strikes at 0
	after bool // the write has happened, and nobody is told
	crash bool
	count int
}

var errDisaster = fmt.Errorf("%w: disaster", store.ErrUnavailable)

// write does one write or fails.
func (d *disaster) write(do func() error) error {
	d.mu.Lock()
	d.count++
	hit, dead := d.count == d.at, d.crash && d.at > 0 && d.count > d.at
	d.mu.Unlock()
	if dead || hit && !d.after {
		return errDisaster
	}
	if err := do(); err != nil || !hit {
		return err
	}
	return errDisaster
}

func (d *disaster) struck() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count >= d.at
}

type disasterStore struct {
	*store.Store
	*disaster
}

func (s disasterStore) Commit(ctx context.Context, txn store.Txn) (revision int64, err error) {
	words := false // what servers tell one another comes when it comes, and nothing rests on it
	for _, p := range txn.Puts {
		words = words || strings.HasPrefix(p.Key, "s/")
	}
	if words || len(txn.Deletes) == 1 && strings.HasPrefix(txn.Deletes[0], "s/") {
		return s.Store.Commit(ctx, txn)
	}
	err = s.write(func() (err error) { revision, err = s.Store.Commit(ctx, txn); return err })
	return revision, err
}

type disasterKeys struct {
	keys.Manager
	*disaster
}

func (k disasterKeys) Generate(ctx context.Context, name string, t keys.Type) (key crypto.Signer, err error) {
	err = k.write(func() (err error) { key, err = k.Manager.Generate(ctx, name, t); return err })
	return key, err
}

func (k disasterKeys) Delete(ctx context.Context, name string) error {
	return k.write(func() error { return k.Manager.Delete(ctx, name) })
}

// life is all that happens to authorities: first ones, then prepare, activate, taint and revoke. Each
// step is tried until it succeeds or the server is dead.
func life(t *testing.T, cfg ca.Config, s *store.Store, crash bool) error {
	t.Helper()
	var c *ca.CA
	try := func(step func() error) (err error) {
		for range 5 {
			if err = step(); err == nil || crash {
				break
			}
		}
		if c != nil && err == nil {
			signsWhatTheStoreHas(t, c, s)
		}
		return err
	}
	if err := try(func() (err error) { c, err = ca.Open(t.Context(), cfg); return err }); err != nil {
		return err
	}
	defer c.Close()
	for _, k := range kinds {
		var next ca.Authority
		if err := try(func() (err error) { next, err = prepare(t, c, k); return err }); err != nil {
			return err
		}
		before, err := c.State(k)
		if err != nil {
			t.Fatal(err)
		}
		if err := try(func() error { return rerun(c, k, next.ID) }); err != nil {
			return err
		}
		for _, step := range []func(context.Context, ca.Kind, string) (ca.Authority, error){c.Taint, c.Revoke} {
			err := try(func() error {
				_, err := step(t.Context(), k, before.Active.ID)
				if errors.Is(err, ca.ErrInvalid) && gone(c, before.Active.ID) { // the attempt before has done it
					return nil
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare prepares, unless the attempt before has.
func prepare(t *testing.T, c *ca.CA, k ca.Kind) (ca.Authority, error) {
	t.Helper()
	if err := c.Rotate(t.Context()); err != nil { // finds out
		return ca.Authority{}, err
	}
	if s, err := c.State(k); err == nil && s.Prepared != nil {
		return *s.Prepared, nil
	}
	return c.Prepare(t.Context(), k)
}

// rerun activates, unless the attempt before has.
func rerun(c *ca.CA, k ca.Kind, id string) error {
	_, err := c.Activate(context.Background(), k, id)
	if s, stateErr := c.State(k); stateErr == nil && s.Active.ID == id {
		return nil
	}
	return err
}

func gone(c *ca.CA, id string) bool {
	b, _ := c.Bundle()
	for _, e := range b.Elements() {
		if e.ID == id {
			return false
		}
	}
	return true
}

// signsWhatTheStoreHas signs one of each and verifies it by the bundle in the store.
func signsWhatTheStoreHas(t *testing.T, c *ca.CA, s *store.Store) {
	t.Helper()
	kvs, _, err := s.Snapshot(t.Context(), "b/")
	if err != nil {
		t.Fatal(err)
	}
	roots, published := x509bundle.New(td), map[string]bool{}
	for _, kv := range kvs {
		published[kv.Key] = true
		if strings.HasPrefix(kv.Key, "b/x509/") && !published["b/tainted"+kv.Key[1:]] {
			cert, err := x509.ParseCertificate(kv.Value)
			if err != nil {
				t.Fatal(err)
			}
			roots.AddX509Authority(cert)
		}
	}
	leaf := workload(t, c, ca.Request{})
	if _, _, err := x509svid.Verify([]*x509.Certificate{leaf}, roots); err != nil {
		t.Errorf("the bundle in the store does not vouch for an SVID: %v", err)
	}
	for prefix, token := range tokens(t, c) {
		parsed, err := jwt.ParseSigned(token.Token, algorithms)
		if err != nil || parsed.Headers[0].KeyID != token.KeyID || !published[prefix+token.KeyID] || published["b/tainted"+prefix[1:]+token.KeyID] {
			t.Errorf("the bundle in the store does not vouch for a token of %s%s (%v)", prefix, token.KeyID, err)
		}
	}
}

func tokens(t *testing.T, c *ca.CA) map[string]ca.Token {
	t.Helper()
	id := spiffeid.RequireFromPath(td, "/w")
	j, err := c.SignJWT(ca.JWTRequest{ID: id, Audience: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.SignWIT(ca.WITRequest{ID: id, PublicKey: key(t).Public(), Algorithm: "ES256"})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]ca.Token{"b/jwt/": j, "b/wit/": w}
}

// TestDisasters fails and crashes at every single write of the authorities' life, and opens again.
func TestDisasters(t *testing.T) {
	s := storetest.Open(t)
	for _, mode := range []struct {
		name         string
		after, crash bool
	}{{"lost", false, false}, {"unknown", true, false}, {"crash before", false, true}, {"crash after", true, true}} {
		t.Run(mode.name, func(t *testing.T) {
			writes := 0
			for n := 1; ; n++ {
				wipe(t, s)
				d := &disaster{at: n, after: mode.after, crash: mode.crash}
				dir := t.TempDir()
				disk, err := keys.OpenDisk(dir)
				if err != nil {
					t.Fatal(err)
				}
				cfg := ca.Config{Dir: dir, TrustDomain: td, Store: disasterStore{s, d}, Keys: disasterKeys{disk, d}}
				err = life(t, cfg, s, mode.crash)
				if !d.struck() {
					break
				}
				if !mode.crash && err != nil {
					t.Errorf("write %d: one failure was fatal: %v", n, err)
				}
				recovers(t, fmt.Sprintf("write %d", n), dir, disk, s)
				writes = n
			}
			if writes < 27 { // 3 kinds: 3 writes to begin with, then 6
				t.Errorf("only %d writes", writes)
			}
		})
	}
}

// recovers opens again, without disaster. Whatever is in the bundle has its key, and no key is left over.
func recovers(t *testing.T, when, dir string, disk keys.Manager, s *store.Store) {
	t.Helper()
	var c *ca.CA
	for range 2 { // keys without a journal are left alone once: it may be the wrong store
		var err error
		if c, err = ca.Open(t.Context(), ca.Config{Dir: dir, TrustDomain: td, Store: s}); err != nil {
			t.Errorf("%s: opening again: %v", when, err)
			return
		}
		defer c.Close()
	}
	signsWhatTheStoreHas(t, c, s)
	ours := map[string]bool{}
	for _, k := range kinds {
		state, err := c.State(k)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		for _, a := range []*ca.Authority{state.Active, state.Prepared, state.Old} {
			if a != nil {
				ours[a.ID] = true
			}
		}
	}
	b, _ := c.Bundle()
	for _, e := range b.Elements() {
		if !ours[e.ID] {
			t.Errorf("%s: %s authority %s was published and lost", when, e.Kind, e.ID)
		}
	}
	if names, err := disk.List(t.Context()); err != nil || len(names) != len(ours) {
		t.Errorf("%s: %d keys for %d authorities (%v)", when, len(names), len(ours), err)
	}
}

func wipe(t *testing.T, s *store.Store) {
	t.Helper()
	kvs, _, err := s.Snapshot(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var txn store.Txn
	for _, kv := range kvs {
		if strings.HasPrefix(kv.Key, "b/") || strings.HasPrefix(kv.Key, "j/") || strings.HasPrefix(kv.Key, "s/") {
			txn.Deletes = append(txn.Deletes, kv.Key)
		}
	}
	if len(txn.Deletes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.Commit(ctx, txn); err != nil {
		t.Fatal(err)
	}
}
