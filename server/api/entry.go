// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
)

// entryService is spire.api.server.entry.v1.Entry.
type entryService struct {
	entryv1.UnimplementedEntryServer
	*Server
}

// GetEntry returns one entry.
func (s *entryService) GetEntry(_ context.Context, req *entryv1.GetEntryRequest) (*types.Entry, error) {
	if req.Id == "" {
		return nil, status.Error(codes.InvalidArgument, "missing ID")
	}
	e := s.cfg.Entries.Get(req.Id)
	if e == nil {
		return nil, status.Error(codes.NotFound, "entry not found")
	}
	return wire.Entry(e, req.OutputMask), nil
}

// BatchCreateEntry creates each entry on its own merits.
func (s *entryService) BatchCreateEntry(ctx context.Context, req *entryv1.BatchCreateEntryRequest) (*entryv1.BatchCreateEntryResponse, error) {
	resp := &entryv1.BatchCreateEntryResponse{Results: make([]*entryv1.BatchCreateEntryResponse_Result, len(req.Entries))}
	var good []*selectors.Entry
	var places []int
	for i, p := range req.Entries {
		e := &selectors.Entry{ID: p.GetId()}
		var err error = &entries.InvalidError{Reason: "missing entry"}
		if p != nil {
			err = wire.SetEntry(e, p, nil)
		}
		if err != nil {
			resp.Results[i] = &entryv1.BatchCreateEntryResponse_Result{Status: wire.EntryStatus("create", err)}
			continue
		}
		good, places = append(good, e), append(places, i)
	}
	for i, res := range s.cfg.Entries.Create(ctx, good) {
		out := &entryv1.BatchCreateEntryResponse_Result{Status: wire.EntryStatus("create", res.Err)}
		if res.Entry != nil { // also the similar one that is in the way
			out.Entry = wire.Entry(res.Entry, req.OutputMask)
		}
		resp.Results[places[i]] = out
	}
	return resp, nil
}

// BatchUpdateEntry replaces the fields of the input mask; all fields without one.
func (s *entryService) BatchUpdateEntry(ctx context.Context, req *entryv1.BatchUpdateEntryRequest) (*entryv1.BatchUpdateEntryResponse, error) {
	updates := make([]entries.Update, len(req.Entries))
	for i, p := range req.Entries {
		updates[i] = entries.Update{ID: p.GetId(), Change: func(e *selectors.Entry) error { return wire.SetEntry(e, p, req.InputMask) }}
	}
	resp := &entryv1.BatchUpdateEntryResponse{}
	for _, res := range s.cfg.Entries.Update(ctx, updates) {
		out := &entryv1.BatchUpdateEntryResponse_Result{Status: wire.EntryStatus("update", res.Err)}
		if res.Err == nil {
			out.Entry = wire.Entry(res.Entry, req.OutputMask)
		}
		resp.Results = append(resp.Results, out)
	}
	return resp, nil
}

// BatchDeleteEntry deletes entries by id.
func (s *entryService) BatchDeleteEntry(ctx context.Context, req *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	resp := &entryv1.BatchDeleteEntryResponse{}
	for i, res := range s.cfg.Entries.Delete(ctx, req.Ids) {
		out := &entryv1.BatchDeleteEntryResponse_Result{Id: req.Ids[i], Status: wire.EntryStatus("delete", res.Err)}
		if req.Ids[i] == "" {
			out.Status = wire.ItemStatus(status.Error(codes.InvalidArgument, "missing entry ID"))
		}
		resp.Results = append(resp.Results, out)
	}
	return resp, nil
}

// ListEntries lists the entries that pass the filter in creation order.
func (s *entryService) ListEntries(_ context.Context, req *entryv1.ListEntriesRequest) (*entryv1.ListEntriesResponse, error) {
	f, err := wire.ReadEntryFilter(s.cfg.TrustDomain, req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, next, err := s.cfg.Entries.List(f, int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to list entries: %w", err))
	}
	resp := &entryv1.ListEntriesResponse{NextPageToken: next}
	for _, e := range list {
		resp.Entries = append(resp.Entries, wire.Entry(e, req.OutputMask))
	}
	return resp, nil
}

// CountEntries counts the entries that pass the filter.
func (s *entryService) CountEntries(_ context.Context, req *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	f, err := wire.ReadEntryFilter(s.cfg.TrustDomain, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &entryv1.CountEntriesResponse{Count: int32(s.cfg.Entries.Count(f))}, nil
}
