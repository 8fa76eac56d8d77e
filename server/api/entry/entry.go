// SPDX-License-Identifier: Apache-2.0

// Package entry serves SPIRE's Entry: registration entries, for operators in this file and for
// SPIRE's agents in sync.go.
package entry

import (
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/gate"
)

// Entries is what the service needs of server/entries.
type Entries interface {
	Create(ctx context.Context, es []*selectors.Entry) []entries.Result
	Update(ctx context.Context, us []entries.Update) []entries.Result
	Delete(ctx context.Context, ids []string) []entries.Result
	Get(id string) *selectors.Entry
	List(f entries.Filter, pageSize int, token string) ([]*selectors.Entry, string, error)
	Count(f entries.Filter) int
	Authorized(agent spiffeid.ID, node selectors.Set) []*selectors.Entry
}

// Service is spire.api.server.entry.v1.Entry.
type Service struct {
	entryv1.UnimplementedEntryServer
	TrustDomain spiffeid.TrustDomain
	Entries     Entries
	// NodeSelectors are those of an agent; nil if it is not known.
	NodeSelectors func(agent spiffeid.ID) selectors.Set
}

// GetEntry returns one entry.
func (s *Service) GetEntry(ctx context.Context, req *entryv1.GetEntryRequest) (*types.Entry, error) {
	if req.Id == "" {
		return nil, status.Error(codes.InvalidArgument, "missing ID")
	}
	e := s.Entries.Get(req.Id)
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found")
	}
	if err := gate.ScopeOf(ctx).Entry(e); err != nil {
		return nil, err
	}
	return wire.Entry(e, req.OutputMask), nil
}

// BatchCreateEntry creates each entry on its own merits.
func (s *Service) BatchCreateEntry(ctx context.Context, req *entryv1.BatchCreateEntryRequest) (*entryv1.BatchCreateEntryResponse, error) {
	resp := &entryv1.BatchCreateEntryResponse{Results: make([]*entryv1.BatchCreateEntryResponse_Result, len(req.Entries))}
	var good []*selectors.Entry
	var places []int
	scope := gate.ScopeOf(ctx)
	for i, p := range req.Entries {
		e := &selectors.Entry{ID: p.GetId()}
		var err error = &entries.InvalidError{Reason: "missing entry"}
		if p != nil {
			err = wire.SetEntry(e, p, nil)
		}
		if err == nil {
			err = scope.Entry(e)
		}
		if err != nil {
			resp.Results[i] = &entryv1.BatchCreateEntryResponse_Result{Status: wire.EntryStatus("create", err)}
			continue
		}
		good, places = append(good, e), append(places, i)
	}
	for i, res := range s.Entries.Create(ctx, good) {
		out := &entryv1.BatchCreateEntryResponse_Result{Status: wire.EntryStatus("create", res.Err)}
		if res.Entry != nil && scope.Entry(res.Entry) == nil { // also the similar one that is in the way
			out.Entry = wire.Entry(res.Entry, req.OutputMask)
		}
		resp.Results[places[i]] = out
	}
	return resp, nil
}

// BatchUpdateEntry replaces the fields of the input mask; all fields without one.
func (s *Service) BatchUpdateEntry(ctx context.Context, req *entryv1.BatchUpdateEntryRequest) (*entryv1.BatchUpdateEntryResponse, error) {
	scope := gate.ScopeOf(ctx)
	updates := make([]entries.Update, len(req.Entries))
	for i, p := range req.Entries {
		updates[i] = entries.Update{ID: p.GetId(), Change: s.change(scope, p, req.InputMask)}
	}
	resp := &entryv1.BatchUpdateEntryResponse{}
	for _, res := range s.Entries.Update(ctx, updates) {
		out := &entryv1.BatchUpdateEntryResponse_Result{Status: wire.EntryStatus("update", res.Err)}
		if res.Err == nil {
			out.Entry = wire.Entry(res.Entry, req.OutputMask)
		}
		resp.Results = append(resp.Results, out)
	}
	return resp, nil
}

// change is what an update does to the stored entry. Within a scope it is judged before, as it is and
// as it is to be, and must not have changed when it is written.
func (s *Service) change(scope gate.Scope, p *types.Entry, mask *types.EntryMask) func(*selectors.Entry) error {
	apply := func(e *selectors.Entry) error { return wire.SetEntry(e, p, mask) }
	if scope.All() {
		return apply
	}
	refuse := func(err error) func(*selectors.Entry) error { return func(*selectors.Entry) error { return err } }
	old := s.Entries.Get(p.GetId())
	if old == nil {
		return refuse(entries.ErrNotFound)
	}
	revision := old.Revision
	if err := scope.Entry(old); err != nil {
		return refuse(err)
	}
	if err := apply(old); err != nil {
		return refuse(err)
	}
	if err := scope.Entry(old); err != nil {
		return refuse(err)
	}
	return func(e *selectors.Entry) error {
		if e.Revision != revision {
			return status.Error(codes.Aborted, "the entry was changed at the same time; call again")
		}
		return apply(e)
	}
}

// BatchDeleteEntry deletes entries by id.
func (s *Service) BatchDeleteEntry(ctx context.Context, req *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	resp := &entryv1.BatchDeleteEntryResponse{Results: make([]*entryv1.BatchDeleteEntryResponse_Result, len(req.Ids))}
	scope := gate.ScopeOf(ctx)
	var ids []string
	var places []int
	for i, id := range req.Ids {
		var err error
		if e := s.Entries.Get(id); id == "" {
			err = status.Error(codes.InvalidArgument, "missing entry ID")
		} else if e != nil {
			err = scope.Entry(e)
		}
		if err == nil {
			ids, places = append(ids, id), append(places, i)
		}
		resp.Results[i] = &entryv1.BatchDeleteEntryResponse_Result{Id: id, Status: wire.ItemStatus(err)}
	}
	for i, res := range s.Entries.Delete(ctx, ids) {
		resp.Results[places[i]].Status = wire.EntryStatus("delete", res.Err)
	}
	return resp, nil
}

// ListEntries lists the entries that pass the filter in creation order.
func (s *Service) ListEntries(ctx context.Context, req *entryv1.ListEntriesRequest) (*entryv1.ListEntriesResponse, error) {
	f, err := wire.ReadEntryFilter(s.TrustDomain, req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, next, err := s.Entries.List(f, int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to list entries: %w", err))
	}
	resp := &entryv1.ListEntriesResponse{NextPageToken: next}
	for _, e := range list {
		if gate.ScopeOf(ctx).Entry(e) == nil {
			resp.Entries = append(resp.Entries, wire.Entry(e, req.OutputMask))
		}
	}
	return resp, nil
}

// CountEntries counts the entries that pass the filter.
func (s *Service) CountEntries(ctx context.Context, req *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	f, err := wire.ReadEntryFilter(s.TrustDomain, req.GetFilter())
	if err != nil {
		return nil, err
	}
	scope := gate.ScopeOf(ctx)
	if scope.All() {
		return &entryv1.CountEntriesResponse{Count: int32(s.Entries.Count(f))}, nil
	}
	list, _, err := s.Entries.List(f, 0, "")
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to count entries: %w", err))
	}
	within := slices.DeleteFunc(list, func(e *selectors.Entry) bool { return scope.Entry(e) != nil })
	return &entryv1.CountEntriesResponse{Count: int32(len(within))}, nil
}
