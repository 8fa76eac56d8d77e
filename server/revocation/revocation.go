// SPDX-License-Identifier: Apache-2.0

// Package revocation takes X.509-SVIDs back before they end.
//
//	signing ──▶ Journal, on this server's disk: what it signed, for which node, entry, process
//	                 ▲ reads
//	operator ──▶ request, in the store ──▶ each server revokes what it signed ──▶ revocations, in the store
//	a node is suspended or banned ──┘                                               │
//	an agent gives an SVID back ────┘          each server signs the lists of its own authorities ──▶ CRLs, in the store
//
// Keys in the store, all values JSON: r/asked/<id> a request, r/done/<id>/<server id> what a server did about it,
// r/revoked/<authority>/<serial> a revocation, r/crl/<authority> a list. Every server has them in memory, turns revoked
// SVIDs away (Revoked) and hands the lists on (CRLs, Handler).
//
// Every step can be repeated: a server that ends between two of them goes on where it was. It looks at the requests that
// it has not answered before it signs anything, so that whatever it signed before is found.
package revocation

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/assay-id/assay/server/store"
)

// Store is what the registry needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// Authorities sign the lists (server/ca).
type Authorities interface {
	// CRLSigners are the X.509 authorities whose key this server has, by id, and when they end.
	CRLSigners() map[string]time.Time
	SignCRL(id string, list *x509.RevocationList) ([]byte, error)
	// Servers are those, by id, that have an authority which has not ended.
	Servers(ctx context.Context) ([]string, error)
}

// Config of a Registry.
type Config struct {
	// Dir is for the journal; made with mode 0700.
	Dir         string
	ServerID    string
	Store       Store
	Authorities Authorities
	// Life is how long anything lives that is signed: the authorities' life.
	Life time.Duration
	// ListTTL is how long a list is valid, 1 h; it is signed anew at half of that.
	ListTTL time.Duration
	// Always makes lists also of authorities nothing of which was ever revoked: somebody may ask for them.
	Always bool
	// Told is called with each revocation that is new, after Revoked shows it. It must not block.
	Told   func(*Revocation)
	Logger *slog.Logger
	// Now defaults to time.Now.
	Now func() time.Time
}

// Registry holds what is revoked. Its methods are safe for concurrent use.
type Registry struct {
	cfg     Config
	journal *Journal
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	wake    chan struct{}

	mu       sync.RWMutex
	view     view
	moved    chan struct{}      // closed when view changes
	listed   chan struct{}      // closed when its lists change
	again    map[string]bool    // requests to look at once more
	refused  map[string]Request // to be asked for, by id
	unsigned map[string]string  // why the list of an authority can not be signed

	published time.Time // the worker's own
}

const (
	pruneEvery = 30 * time.Second
	retryEvery = 3 * time.Second
	// apart is how long one publication of lists is after another: what is revoked in between is one list.
	apart = 100 * time.Millisecond
	// workTimeout bounds one turn, so that a store that hangs is asked again.
	workTimeout = time.Minute
)

// Open reads what is revoked, answers the requests that came while this server was away, and follows the store until Close.
// Nothing may be signed before it returns.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.ListTTL == 0 {
		cfg.ListTTL = time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Told == nil {
		cfg.Told = func(*Revocation) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, wake: make(chan struct{}, 1), moved: make(chan struct{}), listed: make(chan struct{}), again: map[string]bool{}, refused: map[string]Request{}, unsigned: map[string]string{}}
	if err := r.rebuild(ctx); err != nil {
		return nil, err
	}
	var err error
	if r.journal, err = OpenJournal(cfg.Dir, cfg.Logger, cfg.Now); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wg.Go(func() { r.follow(run) })
	if err := r.work(ctx); err != nil {
		r.Close()
		return nil, fmt.Errorf("revoke what was asked for: %w", err)
	}
	r.wg.Go(func() { r.run(run) })
	return r, nil
}

// Close ends the registry. Issued must not be called any more.
func (r *Registry) Close() {
	r.cancel()
	r.wg.Wait()
	if err := r.journal.Close(); err != nil {
		r.cfg.Logger.Warn("closing the journal of signed SVIDs", "error", err)
	}
}

// Issued returns when it is on disk that these were signed: only then may they be given to anybody.
func (r *Registry) Issued(ctx context.Context, records ...Record) error {
	return r.journal.Add(ctx, records...)
}

// KeyOf is what a certificate is known by: the key id of who signed it, in hex, and its serial number in decimal.
func KeyOf(cert *x509.Certificate) (authority, serial string) {
	return hex.EncodeToString(cert.AuthorityKeyId), cert.SerialNumber.String()
}

// Revoked reports whether the certificate is, as far as memory knows.
func (r *Registry) Revoked(cert *x509.Certificate) bool {
	authority, serial := KeyOf(cert)
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.view.revoked[authority][serial] != nil
}

// Item is a revocation, and whether a list has it.
type Item struct {
	*Revocation
	Listed bool
}

// List returns what is revoked and has not ended, in order.
func (r *Registry) List() []Item {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []Item
	for authority, all := range r.view.revoked {
		list := r.view.lists[authority]
		for serial, rev := range all {
			if r.cfg.Now().Before(rev.NotAfter) {
				out = append(out, Item{rev, list != nil && list.serials[serial]})
			}
		}
	}
	slices.SortFunc(out, func(a, b Item) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Serial, b.Serial)
	})
	return out
}

// CRLs returns the present lists, DER, by authority, and a channel that is closed when they change.
func (r *Registry) CRLs() (map[string][]byte, <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make(map[string][]byte, len(r.view.lists))
	for authority, l := range r.view.lists {
		out[authority] = l.list.Raw
	}
	return out, r.listed
}

// run does what is to be done until ctx ends.
func (r *Registry) run(ctx context.Context) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		r.mu.RLock()
		moved := r.moved
		r.mu.RUnlock()
		once, cancel := context.WithTimeout(ctx, workTimeout)
		err := r.work(once)
		cancel()
		var retry <-chan time.Time
		if err != nil && ctx.Err() == nil {
			r.cfg.Logger.Error("revocation does not go on; trying again", "error", err)
			retry = time.After(retryEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-moved:
		case <-r.wake:
		case <-retry:
		case <-prune.C:
			once, cancel := context.WithTimeout(ctx, workTimeout)
			if err := r.prune(once); err != nil && ctx.Err() == nil {
				r.cfg.Logger.Warn("can not remove revocations that have expired; trying again", "error", err)
			}
			cancel()
		}
	}
}

// work answers requests and brings the lists of our authorities up to date.
func (r *Registry) work(ctx context.Context) error {
	if err := r.answer(ctx); err != nil {
		return err
	}
	return r.publish(ctx)
}

// prune removes what no longer matters: revocations of SVIDs that were listed once after their end, requests that nothing
// can be found for any more or that all have answered, and lists of authorities that have ended.
func (r *Registry) prune(ctx context.Context) error {
	servers, err := r.cfg.Authorities.Servers(ctx)
	if err != nil {
		return err
	}
	r.mu.RLock()
	gone := r.view.expired(r.cfg.Now(), r.cfg.ListTTL, r.cfg.Life, servers)
	r.mu.RUnlock()
	for part := range slices.Chunk(gone, store.MaxOps) {
		if _, err := r.cfg.Store.Commit(ctx, store.Txn{Deletes: part}); err != nil {
			return err
		}
	}
	return r.journal.Prune()
}

// put commits in parts and waits until memory shows all of it.
func (r *Registry) put(ctx context.Context, puts []store.KV) error {
	for part := range slices.Chunk(puts, store.MaxOps) {
		revision, err := r.cfg.Store.Commit(ctx, store.Txn{Puts: part, Essential: true})
		if err != nil {
			return err
		}
		if err := r.seen(ctx, revision); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) seen(ctx context.Context, revision int64) error {
	return store.Await(ctx, "revocations", revision, nil, func() (int64, <-chan struct{}) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.view.revision, r.moved
	})
}

func (r *Registry) rebuild(ctx context.Context) error {
	kvs, revision, err := r.cfg.Store.Snapshot(ctx, prefix)
	if err != nil {
		return fmt.Errorf("read what is revoked: %w", err)
	}
	changes := make([]store.Change, 0, len(kvs))
	for _, kv := range kvs {
		changes = append(changes, store.Change(kv))
	}
	r.show(newView(), store.Batch{Revision: revision, Changes: changes})
	return nil
}

func (r *Registry) follow(ctx context.Context) {
	after := func() int64 {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.view.revision
	}
	store.Follower{Prefix: prefix, What: "revocations", After: after, Apply: func(b store.Batch) { r.show(nil, b) }, Rebuild: r.rebuild, Logger: r.cfg.Logger}.Run(ctx, r.cfg.Store)
}

// show applies a batch, to the given view instead of the present one if there is one.
func (r *Registry) show(whole *view, batch store.Batch) {
	r.mu.Lock()
	next := &r.view
	if whole != nil {
		next = whole
	}
	var fresh []*Revocation
	lists := whole != nil
	var unread error
	for _, ch := range batch.Changes {
		rev, list, err := next.apply(ch)
		if err != nil {
			unread = errors.Join(unread, fmt.Errorf("%s: %w", ch.Key, err))
		}
		if rev != nil {
			fresh = append(fresh, rev)
		}
		lists = lists || list
	}
	next.revision = batch.Revision
	r.view = *next
	close(r.moved)
	r.moved = make(chan struct{})
	if lists {
		close(r.listed)
		r.listed = make(chan struct{})
	}
	r.mu.Unlock()
	if unread != nil {
		r.cfg.Logger.Error("what the store says of revocations can not all be read, and that is ignored", "error", unread)
	}
	for _, rev := range fresh {
		r.cfg.Told(rev)
	}
}

// Refresh looks at once whether all authorities have their lists; call it when there are others.
func (r *Registry) Refresh() { r.kick() }

// kick wakes the worker.
func (r *Registry) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
