// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assay-id/assay/observe"
)

// State is what a scrape reads.
type State struct {
	Entries          int
	EntriesRevision  int64
	FederatedBundles int
	Revoked          int
	// Nodes by their standing.
	Nodes map[string]int

	// Agents with an open stream; Feeds are their feeds, Behind those that do not use the newest trust bundle yet.
	Agents, Feeds, Behind int

	Authorities    []Authority
	BundleSequence uint64
	// SVIDEnds is the server's own; zero without one.
	SVIDEnds time.Time

	// SigningMean of one signature, and what waits for a turn.
	SigningMean                     time.Duration
	WaitingCalls, WaitingSignatures int

	Store Store
}

// Authority is one of this server's; State is active, prepared or old.
type Authority struct {
	Kind, State string
	Ends        time.Time
}

// Store is the state of the store.
type Store struct {
	Ready bool
	// Age since it was last known to be reachable, Write how long writes took lately; zero: too few to tell.
	Age, Write time.Duration
	Revision   int64
	Restarts   int
	// Own is false with an etcd of others, of which the rest is not known.
	Own                                                bool
	FreeBytes, MinFreeBytes, DatabaseBytes, QuotaBytes float64
}

// Register has a scrape read the state.
func Register(r prometheus.Registerer, read func() State) {
	v := observe.NewValues(read)
	name := func(n string) string { return Namespace + "_" + n }
	gauge := func(n, help string, get func(*State) float64) {
		v.Gauge(name(n), help, func(s *State) (float64, bool) { return get(s), true })
	}
	gauge("entries", "Registration entries in the replica.", func(s *State) float64 { return float64(s.Entries) })
	gauge("entries_revision", "Revision of the store up to which the replica of entries is.", func(s *State) float64 { return float64(s.EntriesRevision) })
	gauge("federated_bundles", "Bundles of other trust domains.", func(s *State) float64 { return float64(s.FederatedBundles) })
	gauge("revoked_svids", "SVIDs that are revoked and have not ended.", func(s *State) float64 { return float64(s.Revoked) })
	v.Gauges(name("nodes"), "Nodes that are known, by standing.", []string{"state"}, func(s *State, emit func(float64, ...string)) {
		for state, n := range s.Nodes {
			emit(float64(n), state)
		}
	})
	gauge("connected_agents", "Agents with an open stream to this server.", func(s *State) float64 { return float64(s.Agents) })
	gauge("feeds", "Feeds of entries and bundle that are open.", func(s *State) float64 { return float64(s.Feeds) })
	gauge("feeds_behind", "Feeds whose agents do not use the newest trust bundle yet.", func(s *State) float64 { return float64(s.Behind) })
	v.Gauges(name("authority_expiry_timestamp_seconds"), "When this server's authorities end, Unix time, by kind and state.", []string{"kind", "state"}, func(s *State, emit func(float64, ...string)) {
		for _, a := range s.Authorities {
			emit(float64(a.Ends.Unix()), a.Kind, a.State)
		}
	})
	gauge("bundle_sequence", "Sequence number of the trust bundle.", func(s *State) float64 { return float64(s.BundleSequence) })
	v.Gauge(name("svid_expiry_timestamp_seconds"), "When the server's own SVID ends, Unix time.", func(s *State) (float64, bool) { return float64(s.SVIDEnds.Unix()), !s.SVIDEnds.IsZero() })
	gauge("signature_mean_seconds", "How long one signature takes, by which the server knows how many it can make; 0 before the first.", func(s *State) float64 { return s.SigningMean.Seconds() })
	gauge("waiting_calls", "Calls that wait for their turn to be signed for.", func(s *State) float64 { return float64(s.WaitingCalls) })
	gauge("waiting_signatures", "Signatures that those calls are for.", func(s *State) float64 { return float64(s.WaitingSignatures) })
	registerStore(v, name)
	r.MustRegister(v)
}

func registerStore(v *observe.Values[State], name func(string) string) {
	gauge := func(n, help string, get func(*Store) (float64, bool)) {
		v.Gauge(name(n), help, func(s *State) (float64, bool) { return get(&s.Store) })
	}
	always := func(get func(*Store) float64) func(*Store) (float64, bool) {
		return func(s *Store) (float64, bool) { return get(s), true }
	}
	own := func(get func(*Store) float64) func(*Store) (float64, bool) {
		return func(s *Store) (float64, bool) { return get(s), s.Own }
	}
	gauge("store_ready", "1 while the store answers reads and writes.", always(func(s *Store) float64 {
		if s.Ready {
			return 1
		}
		return 0
	}))
	gauge("store_age_seconds", "How long ago the store was last known to be reachable; max_replica_age is the most at which SVIDs are signed.", always(func(s *Store) float64 { return s.Age.Seconds() }))
	gauge("store_write_seconds", "How long writes took lately; 0 if there were too few to tell.", always(func(s *Store) float64 { return s.Write.Seconds() }))
	gauge("store_revision", "Revision of the store that was seen last; the difference to assay_server_entries_revision is what the replica has not read.", always(func(s *Store) float64 { return float64(s.Revision) }))
	gauge("store_restarts", "Restarts of the store's process since the server started.", own(func(s *Store) float64 { return float64(s.Restarts) }))
	gauge("store_database_bytes", "What the database takes on disk; absent with an etcd of others.", own(func(s *Store) float64 { return s.DatabaseBytes }))
	gauge("store_quota_bytes", "What it may take before writes are refused; absent with an etcd of others.", own(func(s *Store) float64 { return s.QuotaBytes }))
	gauge("store_disk_free_bytes", "Free space on its file system; absent with an etcd of others.", own(func(s *Store) float64 { return s.FreeBytes }))
	gauge("store_disk_min_free_bytes", "Free space below which writes are refused; absent with an etcd of others.", own(func(s *Store) float64 { return s.MinFreeBytes }))
}
