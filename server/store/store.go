// SPDX-License-Identifier: Apache-2.0

// Package store is the server's durable memory: an ordered key-value store with one revision
// for all keys, conditional transactions and a watch that resumes from a revision. It is etcd,
// and it is the only package that knows so.
//
// Without endpoints the etcd member runs as a child process of this server:
//
//	assay-server ──┬── replicas, CA, agent streams          lives on
//	               └── assay-server store-member            may die: etcd ends its process on a
//	                     data_dir/store/member              full disk, and nothing can catch that
//	                     data_dir/store/run/client.sock
//
// In a cluster every server has such a child and speaks to its own; the children speak to each
// other (package member).
//
// The parent starts the child again with back-off. Meanwhile writes answer ErrUnavailable with
// the reason, watches wait, and readers go on from their replicas up to an age (Age) that
// they choose themselves.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/assay-id/assay/server/store/member"
)

// What a caller decides on. Errors of this package wrap one of these or are the context's.
var (
	// ErrConflict: a compare failed and nothing was written; see ConflictError.
	ErrConflict = errors.New("the store has changed meanwhile")
	// ErrUnavailable: the store did not answer. If it went away during a Commit, the write may
	// or may not have happened.
	ErrUnavailable = errors.New("the store is not available")
	// ErrFull: there is too little room for writes that are not Essential and free nothing.
	ErrFull = errors.New("the store has no room")
	// ErrCompacted ends a Watch whose next revision is gone: take a new Snapshot.
	ErrCompacted = errors.New("the revision is no longer in the store")
)

// Config says where the store is.
type Config struct {
	// Dir is the folder of our own member (made with mode 0700). Unused with Endpoints.
	Dir string
	// Endpoints of an etcd that is already there, "https://host:2379". Empty: our own member.
	Endpoints []string
	// TLS for Endpoints; nil is plain text.
	TLS *tls.Config
	// Prefix of all keys; default DefaultPrefix. It separates us from others in a shared etcd.
	Prefix string
	// Executable that is started as `Executable store-member …`; default os.Executable().
	Executable string
	// MinFree is the room, in bytes, on Dir's file system below which Commit refuses writes
	// that are not Essential. Zero: 512 MiB, or a tenth of a small file system.
	MinFree uint64
	// Quota is how large, in bytes, our own member's database may grow before Commit refuses
	// writes that are not Essential. Zero: 7 GiB.
	Quota int64
	// Cluster that our own member is in; nil: it is alone.
	Cluster *Cluster
	Logger  *slog.Logger
	// Now defaults to time.Now.
	Now func() time.Time
}

// Cluster is our own member's place among several.
type Cluster struct {
	// Name of this member, unique and never changed.
	Name string
	// Address that the others reach it at, "host:port".
	Address string
	// TrustDomain that the members serve.
	TrustDomain string
}

// DefaultPrefix of all keys.
const DefaultPrefix = "assay/"

// KV is one key with its value and the revision of its last change.
type KV struct {
	Key      string
	Value    []byte
	Revision int64
}

// Store is a connection to etcd and, if it is ours, the supervisor of its process.
type Store struct {
	prefix string
	client *clientv3.Client
	member *supervisor // nil with external endpoints
	disk   *disk       // nil with external endpoints
	log    *slog.Logger
	now    func() time.Time
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	contact  time.Time // when a linearizable read last succeeded, or of Open
	revision int64
	lastErr  error

	schema atomic.Int64 // revision of schemaKey that Migrate has seen; 0 before
	keeper keeper
	pace   pace
}

// Open starts or reaches the store and returns when it answers. The context bounds the
// waiting only; Close ends the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.setDefaults()
	s := &Store{prefix: cfg.Prefix, log: cfg.Logger, now: cfg.Now, keeper: newKeeper(cfg), contact: cfg.Now()}
	endpoints := cfg.Endpoints
	if len(endpoints) == 0 {
		var err error
		if s.member, err = newSupervisor(cfg); err != nil {
			return nil, err
		}
		s.disk = &disk{path: cfg.Dir, minFree: cfg.MinFree}
		endpoints = []string{"unix://" + s.member.socket()}
	}
	var err error
	if s.client, err = newClient(endpoints, cfg.TLS); err != nil {
		s.member.close()
		return nil, fmt.Errorf("connect to the store: %w", err)
	}
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	if s.member != nil {
		s.wg.Go(func() { s.member.run(run) })
	}
	if err := s.firstContact(ctx); err != nil {
		s.Close()
		return nil, err
	}
	s.wg.Go(func() { s.heartbeat(run) })
	if s.member != nil {
		s.wg.Go(func() { s.keep(run) })
	}
	return s, nil
}

func (cfg *Config) setDefaults() {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Quota == 0 {
		cfg.Quota = defaultQuota
	}
}

func (cfg *Config) spec() member.Spec {
	s := member.Spec{QuotaBytes: cfg.Quota + reserve(cfg.Quota)}
	if c := cfg.Cluster; c != nil {
		s.Name, s.Address, s.TrustDomain = c.Name, c.Address, c.TrustDomain
	}
	return s
}

func newClient(endpoints []string, tlsConfig *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  tlsConfig,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		MaxCallSendMsgSize:   member.MaxRequestBytes,
		MaxCallRecvMsgSize:   math.MaxInt32,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		})},
	})
}

// quiet is how long a start may take before it is talked about.
const quiet = 3 * time.Second

// firstContact waits until the store answers. It gives up when the member can not start.
func (s *Store) firstContact(ctx context.Context) error {
	told := s.now().Add(quiet)
	for {
		err := s.ping(ctx)
		if err == nil {
			return nil
		}
		if s.member != nil {
			if failed := s.member.neverStarted(); failed != nil {
				return failed
			}
		}
		if s.now().After(told) && ctx.Err() == nil {
			s.log.Warn("waiting for the store", "reason", s.unavailable(err))
			told = told.Add(time.Minute)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("open the store: %w", s.unavailable(err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const (
	heartbeatEvery = time.Second
	pingTimeout    = 5 * time.Second // longer than a busy disk stalls
)

// heartbeat keeps Age and Health true.
func (s *Store) heartbeat(ctx context.Context) {
	wait := heartbeatEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = heartbeatEvery
		if s.ping(ctx) != nil { // remembered in lastErr
			wait = heartbeatEvery / 10
		}
	}
}

// ping is a linearizable read: it succeeds only while a majority of members agrees.
func (s *Store) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	started := s.now()
	got, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	if err == nil {
		s.contact, s.revision = started, got.Header.Revision
		if s.member != nil {
			s.member.answered()
		}
	}
	return err
}

// Close disconnects and, if the member is ours, ends its process in order.
func (s *Store) Close() {
	s.cancel()
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("closing the connection to the store", "error", err)
	}
	s.wg.Wait()
	s.member.close()
}

// Age is how long ago the store was last known to be reachable and agreed upon. Whoever acts
// on a replica compares it with the age that he accepts.
func (s *Store) Age() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.now().Sub(s.contact))
}

// Health is the store's state for people and for `server status`.
type Health struct {
	// Ready: reads and writes are answered.
	Ready bool
	// Reason is one sentence when not Ready, or when writes are refused or slow.
	Reason string
	// Age as of Store.Age.
	Age time.Duration
	// Revision last seen.
	Revision int64
	// Write is how long writes took lately; zero if there were too few to tell.
	Write time.Duration
	// Restarts of our own member since Open.
	Restarts int
	// FreeBytes on the member's file system and MinFreeBytes below which writes are
	// refused; both zero with external endpoints.
	FreeBytes, MinFreeBytes uint64
	// DatabaseBytes that our own member's database takes on disk, and QuotaBytes from which
	// on writes are refused; both zero with external endpoints.
	DatabaseBytes, QuotaBytes int64
}

// Health reports the present state.
func (s *Store) Health() Health {
	h := Health{Age: s.Age(), Write: s.pace.lately(s.now())}
	s.mu.Lock()
	h.Revision = s.revision
	s.mu.Unlock()
	err := s.trouble()
	h.Ready = err == nil
	if err != nil {
		h.Reason = err.Error()
	}
	if s.member != nil {
		h.Restarts = s.member.restarts()
	}
	if s.disk != nil {
		free, floor, err := s.disk.room()
		h.FreeBytes, h.MinFreeBytes = free, floor
		if err == nil && free < floor && h.Ready {
			h.Reason = s.disk.sentence(free, floor)
		}
		h.DatabaseBytes, h.QuotaBytes = s.keeper.size()
		if why := s.overQuota(); why != "" && h.Ready && h.Reason == "" {
			h.Reason = why
		}
	}
	if h.Ready && h.Reason == "" {
		h.Reason = s.slow()
	}
	return h
}

// trouble returns why a write would fail now, or nil.
func (s *Store) trouble() error {
	s.mu.Lock()
	err := s.lastErr
	s.mu.Unlock()
	if err != nil || s.member != nil && s.member.down() != "" {
		return s.unavailable(err)
	}
	return nil
}

// unavailable turns a failed call into ErrUnavailable with the best reason known.
func (s *Store) unavailable(err error) error {
	if s.member != nil {
		if why := s.member.down(); why != "" {
			return fmt.Errorf("%w: %s", ErrUnavailable, why)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if s.keeper.clustered {
			return fmt.Errorf("%w: no answer for %s; fewer than half of its members may be reachable (see `assay-server store members`): %w", ErrUnavailable, s.Age().Round(time.Second), err)
		}
		return fmt.Errorf("%w: no answer for %s; it is overloaded, stopped or cut off: %w", ErrUnavailable, s.Age().Round(time.Second), err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
