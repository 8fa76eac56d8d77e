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

	"github.com/assay-id/assay/selectors"
)

// Denial is a caller who was given nothing.
type Denial struct {
	// Ref names it to the caller, who learns no more.
	Ref  string
	Time time.Time
	// Reason is a sentence.
	Reason string
	// Facts is nil where the caller could not be attested at all.
	Facts *selectors.Facts
	// Nearest are the entries that the workload came closest to at that moment.
	Nearest []selectors.Near
}

// Denials remembers the last callers who were given nothing, for `assay explain`. It is safe for
// concurrent use; make one with NewDenials.
type Denials struct {
	mu   sync.Mutex
	ring []Denial
	next int
}

const (
	rememberedDenials = 256
	nearestRemembered = 3
)

// NewDenials returns one that remembers nothing yet.
func NewDenials() *Denials { return &Denials{} }

// Find returns the denial that a caller was told the reference of.
func (d *Denials) Find(ref string) (Denial, bool) {
	for _, x := range d.Last(rememberedDenials) {
		if strings.EqualFold(x.Ref, ref) {
			return x, true
		}
	}
	return Denial{}, false
}

// Last returns up to n denials, the newest first.
func (d *Denials) Last(n int) []Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Concat(d.ring[d.next:], d.ring[:d.next])
	slices.Reverse(out)
	return out[:min(n, len(out))]
}

// add remembers the denial and returns its reference.
func (d *Denials) add(x Denial) string {
	x.Ref = rand.Text()[:8]
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ring) < rememberedDenials {
		d.ring = append(d.ring, x)
	} else {
		d.ring[d.next] = x
		d.next = (d.next + 1) % rememberedDenials
	}
	return x.Ref
}

// refuse ends a call whose caller can not be attested (w is nil), or is no longer who it was. The caller
// learns the kind of reason; what was seen stays in the agent.
func (d *Desk) refuse(ctx context.Context, w Workload, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	x := Denial{Time: d.cfg.Now(), Reason: err.Error()}
	if w != nil {
		x.Facts = w.Facts()
	}
	ref := d.cfg.Denials.add(x)
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
	x := Denial{Time: d.cfg.Now(), Reason: "no entry matches", Facts: f, Nearest: d.cfg.SVIDs.Nearest(w.Selectors(), nearestRemembered)}
	attrs := []any{"pid", f.Process.TGID, "path", f.Executable.Path}
	if len(x.Nearest) > 0 {
		attrs = append(attrs, "nearest", x.Nearest[0].Entry.SPIFFEID, "lacks", x.Nearest[0].Missing.String())
	}
	if err != nil {
		x.Reason = err.Error()
		attrs = append(attrs, "error", err)
	}
	ref := d.cfg.Denials.add(x)
	d.cfg.Logger.Info("no identity issued", append(attrs, "reference", ref)...)
	return status.Errorf(codes.PermissionDenied, "no identity issued (reference %s)", ref)
}
