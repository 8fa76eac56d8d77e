// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"context"
	"log/slog"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Session is one attested workload at a Desk. It is for one goroutine.
type Session struct {
	Workload
	// Via is the SPIFFE ID of who asks on the workload's behalf; zero is the workload itself.
	Via spiffeid.ID

	desk *Desk
}

// Entries returns what the workload is entitled to, the default identity first. None is no error: not
// every face has to refuse it.
func (s *Session) Entries() []*selectors.Entry {
	entries := s.desk.cfg.SVIDs.Match(s.Selectors())
	if view := s.desk.cfg.View; view != nil {
		entries = slices.DeleteFunc(entries, func(e *selectors.Entry) bool { return !view(e) })
	}
	return entries
}

// Entitled returns the workload's entries, for one SPIFFE ID if that is not zero. It is
// PermissionDenied to have none.
func (s *Session) Entitled(id spiffeid.ID) ([]*selectors.Entry, error) {
	entries := s.Entries()
	if !id.IsZero() {
		entries = slices.DeleteFunc(entries, func(e *selectors.Entry) bool { return e.SPIFFEID != id })
	}
	if len(entries) == 0 {
		return nil, s.desk.none(s.Workload, nil)
	}
	return entries, nil
}

// X509 returns the X.509-SVIDs of the entries, at least one: what could not be issued is left out and
// logged. With none at all it is PermissionDenied, Unavailable or Unimplemented.
func (s *Session) X509(ctx context.Context, entries []*selectors.Entry) ([]*svids.SVID, error) {
	return s.issued(s.desk.cfg.SVIDs.X509(ctx, s.Workload, entries))
}

// JWT does the same for JWT-SVIDs for an audience.
func (s *Session) JWT(ctx context.Context, entries []*selectors.Entry, audience []string) ([]*svids.SVID, error) {
	return s.issued(s.desk.cfg.SVIDs.JWT(ctx, s.Workload, entries, audience))
}

// WIT does the same for WIT-SVIDs.
func (s *Session) WIT(ctx context.Context, entries []*selectors.Entry) ([]*svids.SVID, error) {
	return s.issued(s.desk.cfg.SVIDs.WIT(ctx, s.Workload, entries))
}

func (s *Session) issued(list []*svids.SVID, err error) ([]*svids.SVID, error) {
	if len(list) == 0 {
		return nil, s.desk.none(s.Workload, err)
	}
	if err != nil {
		s.desk.cfg.Logger.Warn("some identities of a workload could not be issued", "pid", s.Facts().Process.TGID, "error", err)
	}
	return list, nil
}

// Bundles returns our trust domain's bundle, and after it those that the entries federate with.
func (s *Session) Bundles(entries []*selectors.Entry) []*trust.Bundle {
	return s.desk.cfg.SVIDs.Bundles(entries)
}

// Hand gives the workload a message that holds the SVIDs, if it is still the one that was attested,
// and writes that down. Without SVIDs it is a message like any other, and the check the same.
func (s *Session) Hand(ctx context.Context, list []*svids.SVID, send func() error) error {
	if err := s.Check(); err != nil {
		return s.desk.refuse(ctx, s.Workload, err)
	}
	if err := send(); err != nil {
		return err
	}
	s.delivered(list)
	return nil
}

// Answer hands over what a unary call returns.
func Answer[R any](ctx context.Context, s *Session, resp R, list []*svids.SVID) (out R, err error) {
	err = s.Hand(ctx, list, func() error { out = resp; return nil })
	return out, err
}

// delivered records who received what.
func (s *Session) delivered(list []*svids.SVID) {
	if len(list) == 0 {
		return
	}
	f, now := s.Facts(), s.desk.cfg.Now().UTC()
	attrs := []any{"pid", f.Process.TGID, "exec_id", f.Process.ExecID, "sha256", f.Executable.SHA256.String()}
	if !s.Via.IsZero() {
		attrs = append(attrs, "via", s.Via)
	}
	records := make([]history.Delivery, len(list))
	for i, v := range list {
		attrs = append(attrs, slog.Group(v.ID.String(), "kind", v.Kind, "serial", v.Serial, "entry", v.EntryID))
		records[i] = history.Delivery{Time: now, Kind: v.Kind.String(), SPIFFEID: v.ID.String(), Serial: v.Serial, Entry: v.EntryID,
			Audience: v.Audience, Process: f.Process, SHA256: f.Executable.SHA256, Tier: f.Tier.String()}
		if !s.Via.IsZero() {
			records[i].Via = s.Via.String()
		}
	}
	s.desk.cfg.History.Record(records...)
	s.desk.cfg.Memory.delivered(records)
	s.desk.cfg.Logger.Info("delivered", attrs...)
}
