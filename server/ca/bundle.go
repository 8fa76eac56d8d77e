// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store"
)

const (
	bundlePrefix    = "b/"
	authorityPrefix = "b/x509/" // + subject key id in hex: a certificate in DER
	sequenceKey     = "b/sequence"

	conflictTrys = 10
)

// Bundle is the trust bundle of our trust domain (SPIFFE Trust Domain and Bundle §4).
type Bundle struct {
	// X509 authorities in the order in which they were added; stable between changes.
	X509 []X509Authority
	// JWT and WIT authorities, likewise.
	JWT, WIT []KeyAuthority
	// Sequence starts at 0 and rises by one with every effective change.
	Sequence uint64

	sequenceRevision int64
	known            map[string]stored // by key
}

type stored struct {
	cert     *x509.Certificate
	revision int64
}

// Roots are the certificates of X509.
func (b Bundle) Roots() []*x509.Certificate {
	roots := make([]*x509.Certificate, 0, len(b.X509))
	for _, a := range b.X509 {
		roots = append(roots, a.Cert)
	}
	return roots
}

// Bundle returns the present bundle and a channel that is closed when it changes.
func (c *CA) Bundle() (Bundle, <-chan struct{}) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bundle, c.changed
}

// rebuild reads the bundle from the store.
func (c *CA) rebuild(ctx context.Context) error {
	kvs, revision, err := c.cfg.Store.Snapshot(ctx, bundlePrefix)
	if err != nil {
		return fmt.Errorf("read the trust bundle: %w", err)
	}
	changes := make([]store.Change, 0, len(kvs))
	for _, kv := range kvs {
		changes = append(changes, store.Change(kv))
	}
	c.show(Bundle{known: map[string]stored{}}, store.Batch{Revision: revision, Changes: changes})
	return nil
}

// follow keeps the bundle up to date.
func (c *CA) follow(ctx context.Context) {
	after := func() int64 {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return c.shown
	}
	apply := func(batch store.Batch) {
		b, _ := c.Bundle()
		c.show(b, batch)
	}
	store.Follower{Prefix: bundlePrefix, What: "authorities of the trust bundle", After: after, Apply: apply, Rebuild: c.rebuild, Logger: c.cfg.Logger}.Run(ctx, c.cfg.Store)
}

// show makes the bundle with the changes the present one.
func (c *CA) show(b Bundle, batch store.Batch) {
	known := make(map[string]stored, len(b.known))
	for key, have := range b.known {
		known[key] = have
	}
	for _, ch := range batch.Changes {
		switch {
		case ch.Key == sequenceKey:
			b.Sequence, _ = strconv.ParseUint(string(ch.Value), 10, 64)
			b.sequenceRevision = ch.Revision
		case !strings.HasPrefix(ch.Key, authorityPrefix): // of a later version
		case ch.Value == nil:
			delete(known, ch.Key)
		default:
			cert, err := x509.ParseCertificate(ch.Value)
			if err != nil {
				c.cfg.Logger.Error("an authority in the store can not be read and is ignored", "key", ch.Key, "error", err)
				continue
			}
			known[ch.Key] = stored{cert, ch.Revision}
		}
	}
	keys := make([]string, 0, len(known))
	for key := range known {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(x, y string) int {
		return cmp.Or(cmp.Compare(known[x].revision, known[y].revision), strings.Compare(x, y))
	})
	b.known, b.X509 = known, nil
	for _, key := range keys {
		b.X509 = append(b.X509, X509Authority{Cert: known[key].cert})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bundle, c.shown = b, batch.Revision
	close(c.changed)
	c.changed = make(chan struct{})
}

// publish adds the authority's certificate to the bundle if it is not there.
func (c *CA) publish(ctx context.Context, a *authority) error {
	if a == nil {
		return nil
	}
	key := authorityPrefix + hex.EncodeToString(a.cert.SubjectKeyId)
	err := c.edit(ctx, func(b Bundle) (store.Txn, bool) {
		_, have := b.known[key]
		return store.Txn{Puts: []store.KV{{Key: key, Value: a.cert.Raw}}}, !have
	})
	if err != nil {
		return fmt.Errorf("publish X.509 authority %s: %w", a.id(), err)
	}
	return nil
}

// prune removes what expired a day ago, but never the last authority.
func (c *CA) prune(ctx context.Context, now time.Time) error {
	err := c.edit(ctx, func(b Bundle) (store.Txn, bool) {
		var txn store.Txn
		for key, have := range b.known {
			if now.After(have.cert.NotAfter.Add(pruneAfter)) && len(txn.Deletes)+1 < len(b.known) {
				txn.Deletes = append(txn.Deletes, key)
			}
		}
		return txn, len(txn.Deletes) > 0
	})
	if err != nil {
		return fmt.Errorf("prune the trust bundle: %w", err)
	}
	return nil
}

// edit commits a change of the bundle with the next sequence number and waits until Bundle
// shows it; the change is planned again when another server was faster.
func (c *CA) edit(ctx context.Context, change func(Bundle) (txn store.Txn, needed bool)) error {
	var err error
	for range conflictTrys {
		b, _ := c.Bundle()
		txn, needed := change(b)
		if !needed {
			return nil
		}
		next := uint64(0)
		if b.sequenceRevision != 0 {
			next = b.Sequence + 1
		}
		txn.Essential = true // without it nothing can be signed
		txn.Compares = append(txn.Compares, store.Unchanged(sequenceKey, b.sequenceRevision))
		txn.Puts = append(txn.Puts, store.KV{Key: sequenceKey, Value: strconv.AppendUint(nil, next, 10)})
		var revision int64
		revision, err = c.cfg.Store.Commit(ctx, txn)
		var conflict *store.ConflictError
		switch {
		case err == nil:
			return c.seen(ctx, revision)
		case !errors.As(err, &conflict):
			return err
		}
		if err := c.seen(ctx, conflict.Revision); err != nil {
			return err
		}
	}
	return err
}

// seen waits until Bundle shows the revision.
func (c *CA) seen(ctx context.Context, revision int64) error {
	for {
		c.mu.RLock()
		at, changed := c.shown, c.changed
		c.mu.RUnlock()
		if at >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the trust bundle to reach revision %d: %w", revision, ctx.Err())
		}
	}
}
