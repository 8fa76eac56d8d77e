// SPDX-License-Identifier: Apache-2.0

package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/storetest"
)

func want(t *testing.T, what string, got, target error) {
	t.Helper()
	if !errors.Is(got, target) {
		t.Errorf("%s = %v, want %v", what, got, target)
	}
}

// internal is an error that none of our sentinels is in: SPIRE answers Internal there.
func internal(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || errors.Is(err, ca.ErrInvalid) || errors.Is(err, ca.ErrPrecondition) || errors.Is(err, ca.ErrNotReady) {
		t.Errorf("%s = %v, want an error of no kind", what, err)
	}
}

func find(c *ca.CA, k ca.Kind, id string) (have, tainted bool) {
	b, _ := c.Bundle()
	for _, e := range b.Elements() {
		have = have || e.Kind == k && e.ID == id
	}
	return have, b.Tainted(k, id)
}

// TestLocalAuthority: research/spire-wire.md §5.4, for every kind.
func TestLocalAuthority(t *testing.T) {
	dir := t.TempDir()
	c := open(t, storetest.Open(t), dir, &clock{t: time.Now()})
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) { localAuthority(t, c, k) })
	}
	keyFiles(t, dir) // one of each kind is left
}

func localAuthority(t *testing.T, c *ca.CA, k ca.Kind) {
	ctx := t.Context()
	first, err := c.State(k)
	if err != nil || first.Active == nil || first.Prepared != nil || first.Old != nil {
		t.Fatalf("State = %+v, %v", first, err)
	}
	active := first.Active.ID
	refused := func(what, id string) {
		t.Helper()
		_, err := c.Taint(ctx, k, id)
		want(t, "Taint "+what, err, ca.ErrInvalid)
		_, err = c.Revoke(ctx, k, id)
		want(t, "Revoke "+what, err, ca.ErrInvalid)
		_, err = c.Activate(ctx, k, id)
		want(t, "Activate "+what, err, ca.ErrInvalid)
	}
	for what, id := range map[string]string{"nothing": "", "the active one": active, "an unknown one": "0123"} {
		refused(what, id)
	}
	dropped, err := c.Prepare(ctx, k)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Taint(ctx, k, dropped.ID)
	want(t, "Taint of the prepared one", err, ca.ErrInvalid)
	next, err := c.Prepare(ctx, k) // in its place
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.State(k); err != nil || s.Active.ID != active || s.Prepared == nil || *s.Prepared != next || s.Old != nil {
		t.Fatalf("State after two Prepare = %+v, %v", s, err)
	}
	_, err = c.Activate(ctx, k, dropped.ID)
	want(t, "Activate of one that was replaced", err, ca.ErrInvalid)
	if a, err := c.Activate(ctx, k, next.ID); err != nil || a != next {
		t.Fatalf("Activate = %+v, %v", a, err)
	}
	if s, err := c.State(k); err != nil || s.Active.ID != next.ID || s.Prepared != nil || s.Old == nil || s.Old.ID != active {
		t.Fatalf("State after Activate = %+v, %v", s, err)
	}
	_, err = c.Activate(ctx, k, active)
	internal(t, "Activate of the old one", err)
	_, err = c.Revoke(ctx, k, active)
	internal(t, "Revoke of an untainted one", err)
	taintAndRevoke(t, c, k, active)
	if have, _ := find(c, k, dropped.ID); !have {
		t.Error("what was published and replaced left the bundle")
	}
	if s, err := c.State(k); err != nil || s.Old != nil {
		t.Errorf("State after Revoke = %+v, %v", s, err)
	}
}

func taintAndRevoke(t *testing.T, c *ca.CA, k ca.Kind, id string) {
	t.Helper()
	before, changed := c.Bundle()
	for range 2 { // a second time changes nothing
		if a, err := c.Taint(t.Context(), k, id); err != nil || a.ID != id {
			t.Fatalf("Taint = %+v, %v", a, err)
		}
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the taint")
	}
	if have, tainted := find(c, k, id); !have || !tainted {
		t.Errorf("after Taint: in the bundle %t, tainted %t", have, tainted)
	}
	if a, err := c.Revoke(t.Context(), k, id); err != nil || a.ID != id {
		t.Fatalf("Revoke = %+v, %v", a, err)
	}
	have, tainted := find(c, k, id)
	if b, _ := c.Bundle(); have || tainted || b.Sequence != before.Sequence+2 {
		t.Errorf("after Revoke: in the bundle %t, tainted %t, sequence %d, was %d", have, tainted, b.Sequence, before.Sequence)
	}
	_, err := c.Revoke(t.Context(), k, id)
	want(t, "Revoke again", err, ca.ErrInvalid)
	want(t, "TaintUpstream without one", c.TaintUpstream(t.Context(), id), ca.ErrPrecondition)
	want(t, "RevokeUpstream without one", c.RevokeUpstream(t.Context(), id), ca.ErrPrecondition)
}

// TestRevokedElsewhere: another server's active key can be revoked, and that server then signs with
// another at once and never with that one.
func TestRevokedElsewhere(t *testing.T) {
	clk := &clock{t: time.Now()}
	s := storetest.Open(t)
	one, two := open(t, s, t.TempDir(), clk), open(t, s, t.TempDir(), clk)
	state, err := one.State(ca.JWT)
	if err != nil {
		t.Fatal(err)
	}
	_, err = two.Taint(t.Context(), ca.JWT, state.Active.ID)
	want(t, "Taint of another server's", err, ca.ErrInvalid)
	taintElsewhere(t, s, state.Active.ID)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go one.Run(ctx)
	for {
		_, tainted := find(one, ca.JWT, state.Active.ID) // before it signs
		token, err := one.SignJWT(ca.JWTRequest{ID: ca.ServerID(td), Audience: []string{"a"}})
		if err == nil && token.KeyID != state.Active.ID {
			return
		}
		if err == nil && tainted {
			t.Fatal("signed with a tainted key")
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no other key signs: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestAppend(t *testing.T) {
	clk := &clock{t: time.Now()}
	s := storetest.Open(t)
	c, other := open(t, s, t.TempDir(), clk), open(t, storetest.Open(t), t.TempDir(), clk)
	foreign, _ := other.Bundle()
	before, _ := c.Bundle()
	var after ca.Bundle
	for range 2 { // a second time changes nothing
		var err error
		if after, err = c.Append(t.Context(), foreign.Roots(), foreign.JWT); err != nil {
			t.Fatal(err)
		}
	}
	if len(after.X509) != 2 || len(after.JWT) != 2 || after.Sequence != before.Sequence+1 || !after.X509[1].Cert.Equal(foreign.X509[0].Cert) {
		t.Errorf("after Append: %d roots, %d keys, sequence %d", len(after.X509), len(after.JWT), after.Sequence)
	}
	_, err := c.Append(t.Context(), nil, nil)
	want(t, "Append of nothing", err, ca.ErrInvalid)
	for what, a := range map[string]ca.KeyAuthority{
		"no kid": {PublicKey: key(t).Public()}, "no key": {ID: "x"}, "our kid for another key": {ID: before.JWT[0].ID, PublicKey: key(t).Public()},
		"a WIT's kid": {ID: before.WIT[0].ID, PublicKey: before.WIT[0].PublicKey},
	} {
		_, err := c.PublishJWT(t.Context(), a)
		want(t, "PublishJWT with "+what, err, ca.ErrInvalid)
	}
	all, err := c.PublishJWT(t.Context(), ca.KeyAuthority{ID: "nested", PublicKey: key(t).Public(), ExpiresAt: clk.now().Add(time.Hour)})
	if err != nil || len(all) != 3 || all[2].ID != "nested" {
		t.Errorf("PublishJWT = %v, %v", all, err)
	}
	if all, err = c.PublishWIT(t.Context(), ca.KeyAuthority{ID: "nested-wit", PublicKey: key(t).Public()}); err != nil || len(all) != 2 {
		t.Errorf("PublishWIT = %v, %v", all, err)
	}
	clk.advance(26 * time.Hour)
	if err := c.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have, _ := find(c, ca.JWT, "nested"); have {
		t.Error("a key is still there a day after it expired")
	}
	if have, _ := find(c, ca.WIT, "nested-wit"); !have {
		t.Error("a key without an end was pruned")
	}
}

// TestAcknowledged: a prepared authority does not sign before all who are connected know it, here and
// at other servers, but no longer than AckBound.
func TestAcknowledged(t *testing.T) {
	clk := &clock{t: time.Now()}
	s := storetest.Open(t)
	var slow atomic.Bool
	acked := func(sequence uint64) []string {
		if slow.Load() {
			return []string{"spiffe://example.org/spire/agent/slow"}
		}
		return nil
	}
	var logs strings.Builder
	config := func(acked func(uint64) []string) ca.Config {
		return ca.Config{Dir: t.TempDir(), TrustDomain: td, Store: s, Now: clk.now, Acked: acked, Logger: slog.New(slog.NewTextHandler(&logs, nil))}
	}
	withAgents, err := ca.Open(t.Context(), config(acked))
	if err != nil {
		t.Fatal(err)
	}
	defer withAgents.Close()
	other, err := ca.Open(t.Context(), config(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	slow.Store(true)
	for name, c := range map[string]*ca.CA{"the agent's server": withAgents, "another server": other} {
		next, err := c.Prepare(t.Context(), ca.X509)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err = c.Activate(ctx, ca.X509, next.ID)
		cancel()
		want(t, name+": Activate while an agent does not know it", err, context.DeadlineExceeded)
		if a := workload(t, c, ca.Request{}); ski(a.AuthorityKeyId) == next.ID {
			t.Errorf("%s: signed with what an agent does not know", name)
		}
		slow.Store(false)
		if _, err = c.Activate(t.Context(), ca.X509, next.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		slow.Store(true)
	}
	next, err := withAgents.Prepare(t.Context(), ca.JWT)
	if err != nil {
		t.Fatal(err)
	}
	clk.advance(time.Minute)
	if _, err := withAgents.Activate(t.Context(), ca.JWT, next.ID); err != nil {
		t.Errorf("after AckBound: %v", err)
	}
	withAgents.Close()
	other.Close()
	if !strings.Contains(logs.String(), "agent/slow") {
		t.Error("the log does not say whom it did not wait for")
	}
}

// TestMigration takes over what the version before wrote: same keys, same bundle.
func TestMigration(t *testing.T) {
	clk := &clock{t: time.Now()}
	s, dir := storetest.Open(t), t.TempDir()
	oldDir := t.TempDir()
	old := open(t, storetest.Open(t), oldDir, clk)
	bundle, _ := old.Bundle()
	cert := bundle.X509[0].Cert
	data, err := json.Marshal(map[string]any{"current": map[string][]byte{"Certificate": cert.Raw, "Key": privateKey(t, oldDir, cert)}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "authorities.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := open(t, s, dir, clk)
		state, err := c.State(ca.X509)
		b, _ := c.Bundle()
		if err != nil || state.Active.ID != ski(cert.SubjectKeyId) || len(b.X509) != 1 || !b.X509[0].Cert.Equal(cert) {
			t.Fatalf("State = %+v, %v; %d roots", state, err, len(b.X509))
		}
		if leaf := workload(t, c, ca.Request{}); leaf.CheckSignatureFrom(cert) != nil {
			t.Error("it signs with another key")
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the former file is still there: %v", err)
		}
		c.Close()
	}
}

func privateKey(t *testing.T, dir string, cert *x509.Certificate) []byte {
	t.Helper()
	for _, path := range keyFiles(t, dir) {
		der := decodePEM(t, path)
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		if parsed.(*ecdsa.PrivateKey).PublicKey.Equal(cert.PublicKey) {
			return der
		}
	}
	t.Fatal("no key file is the root's")
	return nil
}

// TestLostKey: without its key an authority signs no more, and the others go on.
func TestLostKey(t *testing.T) {
	clk := &clock{t: time.Now()}
	s, dir := storetest.Open(t), t.TempDir()
	c := open(t, s, dir, clk)
	before, _ := c.Bundle()
	c.Close()
	files := keyFiles(t, dir)
	lost := slices.IndexFunc(files, func(path string) bool { return strings.HasPrefix(filepath.Base(path), "x509-") })
	if err := os.Remove(files[lost]); err != nil {
		t.Fatal(err)
	}
	c = open(t, s, dir, clk)
	after, _ := c.Bundle()
	if len(after.X509) != 2 || !after.X509[0].Cert.Equal(before.X509[0].Cert) || len(after.JWT) != 1 {
		t.Errorf("%d roots and %d keys, want the former one, whose SVIDs are valid, and another; the same key", len(after.X509), len(after.JWT))
	}
	workload(t, c, ca.Request{})
	c.Close()
	// Another key under the name is not the authority's.
	files = keyFiles(t, dir)
	x := files[slices.IndexFunc(files, func(path string) bool { return strings.HasPrefix(filepath.Base(path), "x509-") })]
	j, err := os.ReadFile(files[slices.IndexFunc(files, func(path string) bool { return strings.HasPrefix(filepath.Base(path), "jwt-") })])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(x, j, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(t.Context(), ca.Config{Dir: dir, TrustDomain: td, Store: s}); err == nil {
		t.Error("opened with another key in the place of the authority's")
	}
}
