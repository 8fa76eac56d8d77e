// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

const (
	prefix             = "f/"
	bundlePrefix       = "f/bundle/"
	relationshipPrefix = "f/relationship/"
	pollPrefix         = "f/poll/"
)

// Store is what the registry needs of server/store.
type Store interface {
	Snapshot(ctx context.Context, prefix string) ([]store.KV, int64, error)
	Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch
	Commit(ctx context.Context, txn store.Txn) (int64, error)
}

// Entries is what the registry needs of server/entries.
type Entries interface {
	// FederatedWith counts the entries that name the trust domain.
	FederatedWith(td spiffeid.TrustDomain) int
	// Unlink takes the trust domain out of all entries, or deletes those that name it.
	Unlink(ctx context.Context, td spiffeid.TrustDomain, remove bool) error
}

// Own is our own bundle, for endpoints that our own trust domain vouches for and for our endpoint.
// The channel is closed when the bundle changes.
type Own func() (*Bundle, <-chan struct{})

// Config of a Registry.
type Config struct {
	Store       Store
	TrustDomain spiffeid.TrustDomain
	Own         Own
	Entries     Entries
	// Static relationships are this server's configuration. One overrides the stored relationship
	// with the same trust domain and is not listed.
	Static []Relationship
	// WebRoots are trusted for https_web; nil: the system's.
	WebRoots *x509.CertPool
	Logger   *slog.Logger
	Now      func() time.Time
}

// Registry holds the bundles of other trust domains and the relationships with them. Its methods are
// safe for concurrent use.
type Registry struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}

	mu            sync.RWMutex
	revision      int64
	bundles       records[*Bundle]
	relationships records[Relationship]
	polls         records[time.Time] // when, by our clock, a server set out to fetch
	moved         chan struct{}      // closed and replaced when the replica changes
	changed       chan struct{}      // the same for bundles only
}

// record is a value with the store revision that it is from.
type record[T any] struct {
	value    T
	revision int64
}

type records[T any] map[spiffeid.TrustDomain]record[T]

// Open reads what is stored and follows its changes until Close.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, s := range cfg.Static {
		if err := s.Validate(); err != nil {
			return nil, err
		}
	}
	r := &Registry{cfg: cfg, done: make(chan struct{}), moved: make(chan struct{}), changed: make(chan struct{})}
	if err := r.rebuild(ctx); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		store.Follower{Prefix: prefix, What: "federated bundles", After: r.at, Apply: r.apply, Rebuild: r.rebuild, Logger: cfg.Logger}.Run(run, cfg.Store)
	}()
	return r, nil
}

// Close stops following the store.
func (r *Registry) Close() {
	r.cancel()
	<-r.done
}

func (r *Registry) at() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.revision
}

func (r *Registry) rebuild(ctx context.Context) error {
	kvs, revision, err := r.cfg.Store.Snapshot(ctx, prefix)
	if err != nil {
		return fmt.Errorf("read the federated bundles: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	polls := r.polls
	r.bundles, r.relationships, r.polls = records[*Bundle]{}, records[Relationship]{}, records[time.Time]{}
	for _, kv := range kvs {
		r.put(store.Change(kv))
	}
	for td, was := range polls {
		if r.polls[td].revision == was.revision {
			r.polls[td] = was
		}
	}
	r.advance(revision, true)
	return nil
}

func (r *Registry) apply(batch store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bundles := false
	for _, c := range batch.Changes {
		r.put(c)
		bundles = bundles || strings.HasPrefix(c.Key, bundlePrefix)
	}
	r.advance(batch.Revision, bundles)
}

// advance is called with the lock held.
func (r *Registry) advance(revision int64, bundles bool) {
	r.revision = max(r.revision, revision)
	close(r.moved)
	r.moved = make(chan struct{})
	if bundles {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// put brings one change into the replica. A value that can not be read is logged and counts as
// absent: it must not take the others down.
func (r *Registry) put(c store.Change) {
	kind, name := c.Key, ""
	if i := strings.LastIndexByte(c.Key, '/'); i >= 0 {
		kind, name = c.Key[:i+1], c.Key[i+1:]
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err == nil {
		switch kind {
		case bundlePrefix:
			err = put(r.bundles, td, c, decodeBundle)
		case relationshipPrefix:
			err = put(r.relationships, td, c, decodeRelationship)
		case pollPrefix:
			err = put(r.polls, td, c, r.decodePoll)
		}
	}
	if err != nil {
		r.cfg.Logger.Error("a stored federated bundle or relationship can not be read and is ignored", "key", c.Key, "error", err)
	}
}

func put[T any](m records[T], td spiffeid.TrustDomain, c store.Change, decode func(spiffeid.TrustDomain, []byte) (T, error)) error {
	delete(m, td)
	if c.Value == nil {
		return nil
	}
	value, err := decode(td, c.Value)
	if err == nil {
		m[td] = record[T]{value, c.Revision}
	}
	return err
}

// decodePoll believes other servers' clocks only about the past: a claim that was just made is dated
// by when it was seen here.
func (r *Registry) decodePoll(_ spiffeid.TrustDomain, value []byte) (time.Time, error) {
	var p poll
	err := json.Unmarshal(value, &p)
	now := r.cfg.Now()
	if r.revision == 0 && p.At.Before(now) { // at start: it may be long ago
		return p.At, err
	}
	return now, err
}

// seen waits until the replica shows the given revision.
func (r *Registry) seen(ctx context.Context, revision int64) error {
	return store.Await(ctx, "federated bundles", revision, r.done, func() (int64, <-chan struct{}) {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return r.revision, r.moved
	})
}

// Bundle returns the bundle of the trust domain, or nil.
func (r *Registry) Bundle(td spiffeid.TrustDomain) *Bundle {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.bundles[td].value
}

// HasBundle reports whether the bundle of the trust domain is known.
func (r *Registry) HasBundle(td spiffeid.TrustDomain) bool { return r.Bundle(td) != nil }

// CountBundles counts the bundles; ours is not among them.
func (r *Registry) CountBundles() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.bundles)
}

// Changed is closed when any bundle is next added, changed or removed. Take it before reading.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// ListBundles returns the bundles ordered by trust domain. With a page size it returns at most that
// many after the token, and the token for the next page, which is empty only when the page is.
func (r *Registry) ListBundles(pageSize int, token string) ([]*Bundle, string, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return page(r.bundles, pageSize, token)
}

// Relationship returns the stored relationship with the trust domain.
func (r *Registry) Relationship(td spiffeid.TrustDomain) (Relationship, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.relationships[td]
	return rec.value, ok
}

// ListRelationships returns the stored relationships; order, page size and token as ListBundles.
func (r *Registry) ListRelationships(pageSize int, token string) ([]Relationship, string, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return page(r.relationships, pageSize, token)
}

func page[T any](m records[T], size int, token string) ([]T, string, error) {
	after := spiffeid.TrustDomain{}
	if token != "" {
		var err error
		if after, err = spiffeid.TrustDomainFromString(token); err != nil {
			return nil, "", fmt.Errorf("%w %q", ErrToken, token)
		}
	}
	var out []T
	for _, td := range slices.SortedFunc(maps.Keys(m), spiffeid.TrustDomain.Compare) {
		if td.Compare(after) <= 0 {
			continue
		}
		out = append(out, m[td].value)
		if len(out) == size {
			return out, td.Name(), nil
		}
		after = td
	}
	if size > 0 && len(out) > 0 {
		return out, after.Name(), nil
	}
	return out, "", nil
}
