// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assay-id/assay/observe"
)

// State is what a scrape reads.
type State struct {
	Tier string
	// Connected: the server's feed is open. States are all that the conversation can be in, and Conversation the present one.
	Connected    bool
	Conversation string
	States       []string
	// FailingSince is when the renewal of SVIDs began to fail; zero: it does not.
	FailingSince time.Time
	// NodeSVIDEnds is zero without an identity.
	NodeSVIDEnds time.Time

	Entries, SVIDs, Subscriptions, Streams int
	// Revision of the entries, and when the server last sent some; zero: never.
	Revision int64
	Synced   time.Time
	// FirstSVIDEnds is when the first of the workloads' SVIDs ends; zero without one.
	FirstSVIDEnds time.Time

	Sensor *Sensor // nil at T3 without one
}

// Sensor is the state of the kernel's.
type Sensor struct {
	LostEvents, Refused uint64
	// Hooks are how many there are in each state.
	Hooks map[string]int
}

// Register has a scrape read the state.
func Register(r prometheus.Registerer, read func() State) {
	v := observe.NewValues(read)
	name := func(n string) string { return Namespace + "_" + n }
	count := func(n, help string, get func(*State) int) {
		v.Gauge(name(n), help, func(s *State) (float64, bool) { return float64(get(s)), true })
	}
	moment := func(n, help string, get func(*State) time.Time) {
		v.Gauge(name(n), help, func(s *State) (float64, bool) {
			t := get(s)
			return float64(t.UnixMilli()) / 1000, !t.IsZero()
		})
	}
	v.Gauges(name("tier_info"), "Always 1; the label tells the tier of evidence.", []string{"tier"}, func(s *State, emit func(float64, ...string)) { emit(1, s.Tier) })
	count("server_connected", "1 while the server's feed is open.", func(s *State) int {
		if s.Connected {
			return 1
		}
		return 0
	})
	v.Gauges(name("server_state"), "1 for the state of the conversation with the server, 0 for the others.", []string{"state"}, func(s *State, emit func(float64, ...string)) {
		for _, state := range s.States {
			now := 0.0
			if state == s.Conversation {
				now = 1
			}
			emit(now, state)
		}
	})
	moment("node_svid_expiry_timestamp_seconds", "When the node's own SVID ends, Unix time.", func(s *State) time.Time { return s.NodeSVIDEnds })
	v.Gauge(name("renewals_failing"), "1 while SVIDs that are due are not renewed.", func(s *State) (float64, bool) {
		if s.FailingSince.IsZero() {
			return 0, true
		}
		return 1, true
	})
	count("entries", "Registration entries that the server gave this node.", func(s *State) int { return s.Entries })
	count("cached_svids", "SVIDs of workloads in memory.", func(s *State) int { return s.SVIDs })
	count("subscriptions", "Streams that wait for news of their identities.", func(s *State) int { return s.Subscriptions })
	count("open_sessions", "Requests and streams of attested callers that are open.", func(s *State) int { return s.Streams })
	v.Gauge(name("feed_revision"), "Revision of the entries that the server sent last; the difference to assay_server_entries_revision is what is on its way.",
		func(s *State) (float64, bool) { return float64(s.Revision), true })
	moment("feed_last_update_timestamp_seconds", "When the server last sent entries, or that there are none newer, Unix time.", func(s *State) time.Time { return s.Synced })
	moment("svid_expiry_timestamp_seconds", "When the first of the workloads' X.509-SVIDs and WIT-SVIDs ends, Unix time; absent without any.", func(s *State) time.Time { return s.FirstSVIDEnds })
	v.Counter(name("sensor_lost_events_total"), "Events that the kernel could not hand over; absent without a sensor.", func(s *State) (float64, bool) {
		if s.Sensor == nil {
			return 0, false
		}
		return float64(s.Sensor.LostEvents), true
	})
	v.Counter(name("sensor_refused_total"), "What the kernel refused by protect and connect_from; absent without a sensor.", func(s *State) (float64, bool) {
		if s.Sensor == nil {
			return 0, false
		}
		return float64(s.Sensor.Refused), true
	})
	v.Gauges(name("sensor_hooks"), "Kernel hooks by state; absent without a sensor.", []string{"state"}, func(s *State, emit func(float64, ...string)) {
		if s.Sensor != nil {
			for state, n := range s.Sensor.Hooks {
				emit(float64(n), state)
			}
		}
	})
	r.MustRegister(v)
}
