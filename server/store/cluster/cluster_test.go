// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/store/cluster"
	"github.com/assay-id/assay/server/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const (
	trustDomain = "example.org"
	quota       = 40 << 20
)

// conf is a server's store in a folder of its own, at a free port.
func conf(t *testing.T, name string) cluster.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return cluster.Config{Dir: t.TempDir(), Prefix: store.DefaultPrefix, TrustDomain: trustDomain, Name: name, Address: l.Addr().String()}
}

func open(t *testing.T, c cluster.Config) *store.Store {
	t.Helper()
	cfg := store.Config{Dir: c.Dir, Quota: quota}
	if c.Name != "" {
		cfg.Cluster = &store.Cluster{Name: c.Name, Address: c.Address, TrustDomain: c.TrustDomain}
	}
	return storetest.OpenConfig(t, cfg)
}

// invite has host let a new member in by enter, which gets the ticket.
func invite(t *testing.T, host cluster.Config, enter func(ticket string) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	entered, shown := make(chan error, 1), false
	_, err := cluster.Invite(ctx, host, "127.0.0.1:0", func(ticket string) {
		shown = true
		go func() {
			err := enter(ticket)
			if err != nil {
				cancel()
			}
			entered <- err
		}()
	})
	if !shown {
		return err
	}
	return errors.Join(<-entered, err)
}

func join(t *testing.T, host, c cluster.Config) *store.Store {
	t.Helper()
	if err := invite(t, host, func(ticket string) error { return cluster.Join(t.Context(), c, ticket, "") }); err != nil {
		t.Fatal(err)
	}
	return open(t, c)
}

func put(t *testing.T, s *store.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

func content(t *testing.T, s *store.Store) string {
	t.Helper()
	kvs, _, err := s.Snapshot(t.Context(), "e/")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kv := range kvs {
		fmt.Fprintf(&b, "%s=%s;", kv.Key, kv.Value)
	}
	return b.String()
}

func members(t *testing.T, c cluster.Config) string {
	t.Helper()
	all, err := cluster.Members(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, m := range all {
		role := m.Role
		if role == cluster.Leader {
			role = cluster.Voter
		}
		texts = append(texts, m.Name+" "+role)
	}
	return strings.Join(texts, ", ")
}

func wantError(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want an error with %q", what, err, part)
		}
	}
}

// TestLife: a store that was alone becomes one of three, loses one, and gets another.
func TestLife(t *testing.T) {
	a, b, c := conf(t, "a"), conf(t, "b"), conf(t, "c")
	alone := a
	alone.Name = ""
	s := open(t, alone)
	put(t, s, "m/trust_domain", trustDomain)
	put(t, s, "e/1", "from before")
	wantError(t, "init of a running store", cluster.Init(a, time.Now()), "in use by another assay-server")
	wantError(t, "invite of a store that is alone", invite(t, a, func(string) error { return nil }), "start it again with the block cluster")
	s.Close()
	_, err := store.Open(t.Context(), store.Config{Dir: a.Dir, Cluster: &store.Cluster{Name: "a", Address: a.Address, TrustDomain: trustDomain}})
	wantError(t, "a cluster without init", err, "store init")
	if err := cluster.Init(a, time.Now()); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), store.Config{Dir: a.Dir})
	wantError(t, "a member without the block", err, "put the block cluster")

	atA := open(t, a)
	atB := join(t, a, b)
	wantError(t, "a second member b", invite(t, a, func(ticket string) error {
		twin := conf(t, "b")
		return cluster.Join(t.Context(), twin, ticket, "")
	}), "has a member b", "replace TICKET")
	atC := join(t, b, c) // any member invites
	put(t, atC, "e/2", "through c")
	for name, s := range map[string]*store.Store{"a": atA, "b": atB, "c": atC} {
		if got := content(t, s); got != "e/1=from before;e/2=through c;" {
			t.Errorf("at %s: %s", name, got)
		}
	}
	if got := members(t, b); got != "a voter, b voter, c voter" {
		t.Errorf("members: %s", got)
	}

	atC.Close()
	put(t, atA, "e/3", "with two of three")
	lost := conf(t, "c") // another machine of the same name
	if err := invite(t, a, func(ticket string) error { return cluster.Join(t.Context(), lost, ticket, "c") }); err != nil {
		t.Fatal(err)
	}
	atNew := open(t, lost)
	if got := content(t, atNew); got != content(t, atA) {
		t.Errorf("at the new c: %s", got)
	}
	_, err = store.Open(t.Context(), store.Config{Dir: c.Dir, Cluster: &store.Cluster{Name: c.Name, Address: c.Address, TrustDomain: trustDomain}})
	wantError(t, "the lost member comes back", err, "was removed from the store's cluster")
	wantError(t, "remove of oneself", cluster.Remove(t.Context(), a, "a"), "from another one")
	if err := cluster.Remove(t.Context(), a, "c"); err != nil {
		t.Fatal(err)
	}
	if got := members(t, a); got != "a voter, b voter" {
		t.Errorf("members: %s", got)
	}
}

// TestRoom: both members shrink after deletes, the leader after it has handed over.
func TestRoom(t *testing.T) {
	a, b := conf(t, "a"), conf(t, "b")
	if err := cluster.Init(a, time.Now()); err != nil {
		t.Fatal(err)
	}
	atA := open(t, a)
	atB := join(t, a, b)
	var keys []string
	var err error
	for value := strings.Repeat("v", 256<<10); err == nil; {
		key := fmt.Sprintf("e/%d", len(keys))
		_, err = atA.Commit(t.Context(), store.Txn{Puts: []store.KV{{Key: key, Value: []byte(value)}}})
		keys = append(keys, key)
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("after %d writes: %v", len(keys), err)
	}
	if _, err := atB.Commit(t.Context(), store.Txn{Deletes: keys}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(40 * time.Second)
	for _, s := range []*store.Store{atA, atB} {
		for h := s.Health(); h.DatabaseBytes > quota/4 || h.Reason != ""; h = s.Health() {
			if time.Now().After(deadline) {
				t.Fatalf("it does not shrink: %+v", h)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	put(t, atA, "e/again", "x")
}

// TestStrangers: nothing is let in without the ticket, and nothing speaks to the peer port
// without a certificate.
func TestStrangers(t *testing.T) {
	a := conf(t, "a")
	if err := cluster.Init(a, time.Now()); err != nil {
		t.Fatal(err)
	}
	open(t, a)
	newcomer := conf(t, "b")
	err := invite(t, a, func(ticket string) error {
		foreign := conf(t, "b")
		foreign.TrustDomain = "other.example"
		wantError(t, "foreign", cluster.Join(t.Context(), foreign, ticket, ""), "correct one of them")
		wantError(t, "damaged", cluster.Join(t.Context(), newcomer, ticket[:len(ticket)-8], ""), "damaged")
		occupied := conf(t, "b")
		if err := os.Mkdir(filepath.Join(occupied.Dir, "member"), 0o700); err != nil {
			t.Error(err)
		}
		wantError(t, "occupied", cluster.Join(t.Context(), occupied, ticket, ""), "holds a store already")
		wantError(t, "wrong secret", cluster.Join(t.Context(), newcomer, cluster.WithoutSecret(ticket), ""), "not valid")
		wantError(t, "other certificate", cluster.Join(t.Context(), newcomer, cluster.WithoutCertificate(ticket), ""), "not the one that printed the ticket")
		if err := cluster.Join(t.Context(), newcomer, ticket, ""); err != nil {
			return err
		}
		wantError(t, "used twice", cluster.Join(t.Context(), conf(t, "c"), ticket, ""), "") // refused, or gone
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := members(t, a); !strings.Contains(got, "invited") {
		t.Errorf("members: %s", got)
	}
	conn, err := net.Dial("tcp", a.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /members HTTP/1.0\r\n\r\n")
	answer := make([]byte, 64)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _ := conn.Read(answer); bytes.Contains(answer[:n], []byte(" 200 ")) {
		t.Errorf("the peer port answers in plain text: %q", answer[:n])
	}
}

// TestBackupRestore: what was there at the backup is there again, the revision is further than
// it ever was, and a member that joins afterwards has it too.
func TestBackupRestore(t *testing.T) {
	a := conf(t, "a")
	a.Name = ""
	s := open(t, a)
	put(t, s, "m/trust_domain", trustDomain)
	for i := range 50 {
		put(t, s, fmt.Sprintf("e/%03d", i), "x")
	}
	want := content(t, s)
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := cluster.Backup(t.Context(), a, file); err != nil {
		t.Fatal(err)
	}
	lost := put(t, s, "e/later", "lost with the machine")
	s.Close()
	wantError(t, "restore over a store", cluster.Restore(a, file), "holds a store already")

	b := conf(t, "b")
	foreign := b
	foreign.TrustDomain = "other.example"
	wantError(t, "foreign backup", cluster.Restore(foreign, file), `of trust domain "example.org"`)
	for name, damage := range map[string]func([]byte) []byte{
		"short":   func(d []byte) []byte { return d[:len(d)-100] },
		"flipped": func(d []byte) []byte { d[len(d)/2] ^= 1; return d },
		"empty":   func([]byte) []byte { return nil },
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(bad, damage(data), 0o600); err != nil {
			t.Fatal(err)
		}
		wantError(t, name, cluster.Restore(b, bad), "not a backup")
	}
	if err := cluster.Restore(b, file); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Init(b, time.Now()); err != nil {
		t.Fatal(err)
	}
	restored := open(t, b)
	if got := content(t, restored); got != want {
		t.Errorf("restored: %s", got)
	}
	if rev := put(t, restored, "e/new", "y"); rev <= lost {
		t.Errorf("revision %d after the restore, %d before", rev, lost)
	}
	if batch := <-restored.Watch(t.Context(), "e/", lost); !errors.Is(batch.Err, store.ErrCompacted) {
		t.Errorf("a watch from a lost revision: %+v", batch)
	}
	joined := join(t, b, conf(t, "c"))
	if got := content(t, joined); got != want+"e/new=y;" {
		t.Errorf("at a member that joined after the restore: %s", got)
	}
	again := filepath.Join(t.TempDir(), "again")
	if _, err := cluster.Backup(t.Context(), b, again); err != nil {
		t.Fatal(err)
	}
	d := conf(t, "d")
	if err := cluster.Restore(d, again); err != nil {
		t.Fatal(err)
	}
	d.Name = ""
	if got := content(t, open(t, d)); got != want+"e/new=y;" {
		t.Errorf("restored a second time: %s", got)
	}
}
