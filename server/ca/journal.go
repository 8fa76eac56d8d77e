// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
	"github.com/assay-id/assay/server/store"
)

const journalPrefix = "j/" // + a server's id

// journalFile is what the store knows of one server's authorities, JSON. It holds no private key.
type journalFile struct {
	Authorities []journalEntry `json:"authorities"`
}

type journalEntry struct {
	Kind       string    `json:"kind"`
	Status     string    `json:"status"` // active, prepared, old
	ID         string    `json:"id"`
	KeyName    string    `json:"key_name"`
	PublicKey  []byte    `json:"public_key"`            // PKIX
	Chain      [][]byte  `json:"chain,omitempty"`       // DER
	Anchor     string    `json:"anchor"`                // a key in the store
	UpstreamID string    `json:"upstream_id,omitempty"` // hex
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
	Published  time.Time `json:"published"`
	Sequence   uint64    `json:"sequence"`
}

const (
	statusActive   = "active"
	statusPrepared = "prepared"
	statusOld      = "old"
)

// put adds to the transaction our journal as it will be with the slots of one kind, on condition
// that nobody else has written it.
func (c *CA) put(txn *store.Txn, k Kind, s slots) error {
	var file journalFile
	for kind, have := range c.allSlots() {
		if Kind(kind) == k {
			have = s
		}
		next := statusPrepared
		if have.old {
			next = statusOld
		}
		for _, slot := range []struct {
			a      *authority
			status string
		}{{have.current, statusActive}, {have.next, next}} {
			if slot.a == nil {
				continue
			}
			entry, err := slot.a.entry(slot.status)
			if err != nil {
				return err
			}
			file.Authorities = append(file.Authorities, entry)
		}
	}
	value, err := json.Marshal(file)
	if err != nil {
		return fmt.Errorf("encode the journal of authorities: %w", err)
	}
	key := journalPrefix + c.serverID
	txn.Compares = append(txn.Compares, store.Unchanged(key, c.journal))
	txn.Puts = append(txn.Puts, store.KV{Key: key, Value: value})
	return nil
}

func (a *authority) entry(status string) (journalEntry, error) {
	public, err := x509.MarshalPKIXPublicKey(a.public)
	if err != nil {
		return journalEntry{}, fmt.Errorf("encode authority %s: %w", a.id, err)
	}
	e := journalEntry{
		Kind: a.kind.String(), Status: status, ID: a.id, KeyName: a.keyName, PublicKey: public, Anchor: a.anchor, UpstreamID: a.upstreamID,
		NotBefore: a.notBefore, NotAfter: a.notAfter, Published: a.published, Sequence: a.sequence,
	}
	for _, cert := range a.chain {
		e.Chain = append(e.Chain, cert.Raw)
	}
	return e, nil
}

// authority reads an entry of a journal, without its key.
func (e journalEntry) authority() (*authority, error) {
	kind, known := bundle.KindOf(e.Kind)
	if !known || e.Status != statusActive && e.Status != statusPrepared && e.Status != statusOld {
		return nil, fmt.Errorf("kind %q and status %q are not known to this version", e.Kind, e.Status)
	}
	public, err := x509.ParsePKIXPublicKey(e.PublicKey)
	if err != nil {
		return nil, err
	}
	a := &authority{
		kind: kind, id: e.ID, keyName: e.KeyName, public: public, anchor: e.Anchor, upstreamID: e.UpstreamID,
		notBefore: e.NotBefore, notAfter: e.NotAfter, published: e.Published, sequence: e.Sequence,
	}
	for _, der := range e.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		a.chain = append(a.chain, cert)
	}
	if kind == X509 && (len(a.chain) == 0 || !mint.SamePublicKey(a.chain[0].PublicKey, public)) {
		return nil, errors.New("a certificate and its key do not belong together")
	}
	return a, nil
}

// readJournal reads what a journal's bytes say, without the keys.
func readJournal(data []byte) ([bundle.Kinds]slots, error) {
	var all [bundle.Kinds]slots
	var file journalFile
	if err := json.Unmarshal(data, &file); err != nil {
		return all, err
	}
	for _, e := range file.Authorities {
		a, err := e.authority()
		if err != nil {
			return all, fmt.Errorf("authority %q: %w", e.ID, err)
		}
		s := &all[a.kind]
		if e.Status == statusActive {
			s.current = a
		} else {
			s.next, s.old = a, e.Status == statusOld
		}
	}
	return all, nil
}

// load makes the slots what our journal in the store says.
func (c *CA) load(ctx context.Context) error {
	key := journalPrefix + c.serverID
	kvs, _, err := c.cfg.Store.Snapshot(ctx, key)
	if err != nil {
		return fmt.Errorf("read the journal of authorities: %w", err)
	}
	var all [bundle.Kinds]slots
	c.journal = 0
	for _, kv := range kvs {
		if kv.Key != key {
			continue
		}
		if all, err = readJournal(kv.Value); err != nil {
			return fmt.Errorf("%s in the store is damaged; restore the store from a backup: %w", key, err)
		}
		c.journal = kv.Revision
	}
	for k := range all {
		if err := c.openKeys(ctx, &all[k]); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots, c.unsure = all, false
	c.chooseSigners()
	return nil
}

// openKeys gives the authorities their keys. One whose key is gone signs no more; what it signed
// stays valid.
func (c *CA) openKeys(ctx context.Context, s *slots) error {
	for _, slot := range []**authority{&s.current, &s.next} {
		a := *slot
		if a == nil {
			continue
		}
		err := c.openKey(ctx, a)
		if errors.Is(err, fs.ErrNotExist) {
			c.cfg.Logger.Warn("the key manager lacks an authority's key; another takes its place", "kind", a.kind, "authority_id", a.id, "expires_at", a.notAfter)
			if !s.old || slot == &s.current {
				*slot = nil
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("open the key of %s authority %s: %w", a.kind, a.id, err)
		}
		if made := c.spare[a.kind]; made != nil && made.name == a.keyName {
			c.spare[a.kind] = nil // the write that failed has happened
		}
	}
	return nil
}

func (c *CA) openKey(ctx context.Context, a *authority) error {
	key, err := c.cfg.Keys.Open(ctx, a.keyName)
	if err != nil {
		return err
	}
	if !mint.SamePublicKey(key.Public(), a.public) {
		return fmt.Errorf("key %s of the key manager is another than that of the journal; restore the one that belongs there", a.keyName)
	}
	return a.open(key)
}

// recover finds this server's authorities again after whatever ended the last run.
func (c *CA) recover(ctx context.Context) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	if err := c.migrate(ctx); err != nil {
		return err
	}
	if c.journal == 0 {
		return c.enter(ctx)
	}
	return c.sweep(ctx)
}

// enter makes this server known to a store before it makes its first key: keys that are there already
// belong to authorities of another store.
func (c *CA) enter(ctx context.Context) error {
	names, err := c.cfg.Keys.List(ctx)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("the key manager has keys (%s and others) of authorities that the store does not know: correct `store`, restore the store from a backup, or move the keys away to begin with new authorities", names[0])
	}
	txn := store.Txn{Essential: true}
	if err := c.put(&txn, X509, slots{}); err != nil {
		return err
	}
	if c.journal, err = c.cfg.Store.Commit(ctx, txn); err != nil {
		return fmt.Errorf("write the journal of authorities: %w", err)
	}
	return nil
}

// sweep deletes keys that no authority has: of a run that ended before it wrote of them.
func (c *CA) sweep(ctx context.Context) error {
	names, err := c.cfg.Keys.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range c.allSlots() {
		for _, a := range []*authority{s.current, s.next} {
			if a != nil {
				names = slices.DeleteFunc(names, func(name string) bool { return name == a.keyName })
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	// A write of the last run may still be on its way; after this one it fails.
	var txn store.Txn
	if err := c.put(&txn, X509, c.slotsOf(X509)); err != nil {
		return err
	}
	txn.Essential = true
	if c.journal, err = c.cfg.Store.Commit(ctx, txn); err != nil {
		return fmt.Errorf("write the journal of authorities: %w", err)
	}
	for _, name := range names {
		if err := c.cfg.Keys.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (c *CA) allSlots() [bundle.Kinds]slots {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots
}

func (c *CA) slotsOf(k Kind) slots { return c.allSlots()[k] }
