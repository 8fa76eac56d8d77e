// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/selectors"
)

// Denial is a caller who was given nothing.
type Denial struct {
	// Ref names it to the caller, who learns no more.
	Ref  string
	Time time.Time
	// Kind is the reason in one word, Reason in a sentence.
	Kind, Reason string
	// Facts is nil where the caller could not be attested at all.
	Facts *selectors.Facts
	// Nearest are the entries that the workload came closest to at that moment.
	Nearest []selectors.Near
}

// Memory remembers the last callers who were given nothing, and the last who were given something, for `assay
// explain`. It is safe for concurrent use; make one with NewMemory.
type Memory struct {
	onDenial   func(kind string)
	mu         sync.Mutex
	denials    ring[Denial]
	deliveries ring[history.Delivery]
}

const (
	rememberedDenials    = 256
	rememberedDeliveries = 1024
	nearestRemembered    = 3
)

// NewMemory returns one that remembers nothing yet.
func NewMemory() *Memory {
	return &Memory{onDenial: func(string) {}, denials: ring[Denial]{limit: rememberedDenials}, deliveries: ring[history.Delivery]{limit: rememberedDeliveries}}
}

// The kinds of reasons beside those of the errors, which name theirs by a method Kind() string.
const (
	NoEntry  = "no_entry"  // the workload matches none, or none of that SPIFFE ID
	ByServer = "by_server" // the server refused to sign
	NoFacts  = "no_facts"  // the caller could not be attested for another reason
)

// OnDenial has f told the kind of each denial. Call it before the first.
func (m *Memory) OnDenial(f func(kind string)) { m.onDenial = f }

// Denial returns the one that a caller was told the reference of.
func (m *Memory) Denial(ref string) (Denial, bool) {
	for _, x := range m.Denials() {
		if strings.EqualFold(x.Ref, ref) {
			return x, true
		}
	}
	return Denial{}, false
}

// Denials returns those that are remembered, the newest first.
func (m *Memory) Denials() []Denial {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.denials.newest()
}

// Deliveries returns those that are remembered, the newest first.
func (m *Memory) Deliveries() []history.Delivery {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.deliveries.newest()
}

// denied remembers the denial and returns its reference.
func (m *Memory) denied(x Denial) string {
	x.Ref = rand.Text()[:8]
	m.onDenial(x.Kind)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.denials.add(x)
	return x.Ref
}

func (m *Memory) delivered(list []history.Delivery) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range list {
		m.deliveries.add(d)
	}
}

// ring holds the last limit values.
type ring[V any] struct {
	limit, next int
	values      []V
}

func (r *ring[V]) add(v V) {
	if len(r.values) < r.limit {
		r.values = append(r.values, v)
		return
	}
	r.values[r.next] = v
	r.next = (r.next + 1) % r.limit
}

func (r *ring[V]) newest() []V {
	out := slices.Concat(r.values[r.next:], r.values[:r.next])
	slices.Reverse(out)
	return out
}

// refuse ends a call whose caller can not be attested (w is nil), or is no longer who it was. The caller
// learns the kind of reason; what was seen stays in the agent.
func (d *Desk) refuse(ctx context.Context, w Workload, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	x := Denial{Time: d.cfg.Now(), Kind: NoFacts, Reason: err.Error()}
	var kind interface{ Kind() string }
	if errors.As(err, &kind) {
		x.Kind = kind.Kind()
	}
	if w != nil {
		x.Facts = w.Facts()
	}
	ref := d.cfg.Memory.denied(x)
	d.cfg.Logger.Warn("caller refused", "reason", err, "reference", ref)
	return status.Errorf(codes.PermissionDenied, "%v (reference %s)", err, ref)
}

// none is the answer to a workload without any identity: PermissionDenied when that is a
// verdict (SPIFFE Workload API, section 5.2.1), Unavailable when the server could not be asked,
// Unimplemented when it signs none.
func (d *Desk) none(w Workload, err error) error {
	var verdict interface{ Refused() bool }
	var unsupported interface{ Unsupported() bool }
	switch {
	case errors.As(err, &unsupported):
		return status.Error(codes.Unimplemented, "the server does not issue this kind of identity")
	case err != nil && !errors.As(err, &verdict):
		d.cfg.Logger.Warn("no identity could be issued", "pid", w.Facts().Process.TGID, "error", err)
		return status.Error(codes.Unavailable, "the identity can not be issued now, try again")
	}
	f := w.Facts()
	x := Denial{Time: d.cfg.Now(), Kind: NoEntry, Reason: "no entry matches", Facts: f, Nearest: d.cfg.SVIDs.Nearest(w.Selectors(), nearestRemembered)}
	attrs := []any{"pid", f.Process.TGID, "path", f.Executable.Path}
	if len(x.Nearest) > 0 {
		attrs = append(attrs, "nearest", x.Nearest[0].Entry.SPIFFEID, "lacks", x.Nearest[0].Missing.String())
	}
	if err != nil {
		x.Kind, x.Reason = ByServer, err.Error()
		attrs = append(attrs, "error", err)
	}
	ref := d.cfg.Memory.denied(x)
	d.cfg.Logger.Info("no identity issued", append(attrs, "reference", ref)...)
	return status.Errorf(codes.PermissionDenied, "no identity issued (reference %s)", ref)
}
