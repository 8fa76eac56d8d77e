// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/assay-id/assay/selectors"
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
	return entryToProto(e, req.OutputMask), nil
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
			err = setEntry(e, p, allFields)
		}
		if err != nil {
			resp.Results[i] = &entryv1.BatchCreateEntryResponse_Result{Status: entryStatus("create", err)}
			continue
		}
		good, places = append(good, e), append(places, i)
	}
	for i, res := range s.cfg.Entries.Create(ctx, good) {
		out := &entryv1.BatchCreateEntryResponse_Result{Status: entryStatus("create", res.Err)}
		if res.Entry != nil { // also the similar one that is in the way
			out.Entry = entryToProto(res.Entry, req.OutputMask)
		}
		resp.Results[places[i]] = out
	}
	return resp, nil
}

// BatchUpdateEntry replaces the fields of the input mask; all fields without one.
func (s *entryService) BatchUpdateEntry(ctx context.Context, req *entryv1.BatchUpdateEntryRequest) (*entryv1.BatchUpdateEntryResponse, error) {
	mask := entryMask(req.InputMask)
	updates := make([]entries.Update, len(req.Entries))
	for i, p := range req.Entries {
		updates[i] = entries.Update{ID: p.GetId(), Change: func(e *selectors.Entry) error { return setEntry(e, p, mask) }}
	}
	resp := &entryv1.BatchUpdateEntryResponse{}
	for _, res := range s.cfg.Entries.Update(ctx, updates) {
		out := &entryv1.BatchUpdateEntryResponse_Result{Status: entryStatus("update", res.Err)}
		if res.Err == nil {
			out.Entry = entryToProto(res.Entry, req.OutputMask)
		}
		resp.Results = append(resp.Results, out)
	}
	return resp, nil
}

// BatchDeleteEntry deletes entries by id.
func (s *entryService) BatchDeleteEntry(ctx context.Context, req *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	resp := &entryv1.BatchDeleteEntryResponse{}
	for i, res := range s.cfg.Entries.Delete(ctx, req.Ids) {
		out := &entryv1.BatchDeleteEntryResponse_Result{Id: req.Ids[i], Status: entryStatus("delete", res.Err)}
		if req.Ids[i] == "" {
			out.Status = itemStatus(codes.InvalidArgument, "missing entry ID")
		}
		resp.Results = append(resp.Results, out)
	}
	return resp, nil
}

// ListEntries lists the entries that pass the filter in creation order.
func (s *entryService) ListEntries(_ context.Context, req *entryv1.ListEntriesRequest) (*entryv1.ListEntriesResponse, error) {
	f, err := s.entryFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, next, err := s.cfg.Entries.List(f, int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, rpcError(fmt.Errorf("failed to list entries: %w", err))
	}
	resp := &entryv1.ListEntriesResponse{NextPageToken: next}
	for _, e := range list {
		resp.Entries = append(resp.Entries, entryToProto(e, req.OutputMask))
	}
	return resp, nil
}

// CountEntries counts the entries that pass the filter.
func (s *entryService) CountEntries(_ context.Context, req *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	f, err := s.entryFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &entryv1.CountEntriesResponse{Count: int32(s.cfg.Entries.Count(f))}, nil
}

// entryFilter is what the two generated filter messages have in common.
type entryFilter interface {
	GetBySpiffeId() *types.SPIFFEID
	GetByParentId() *types.SPIFFEID
	GetBySelectors() *types.SelectorMatch
	GetByFederatesWith() *types.FederatesWithMatch
	GetByHint() *wrapperspb.StringValue
	GetByDownstream() *wrapperspb.BoolValue
}

func (s *Server) entryFilter(p entryFilter) (entries.Filter, error) {
	// by_downstream = false is no filter: spire-server's CLI always sends it.
	f := entries.Filter{Hint: p.GetByHint().GetValue(), Downstream: p.GetByDownstream().GetValue()}
	var err error
	if id := p.GetBySpiffeId(); id != nil {
		if f.SPIFFEID, err = s.workloadID(id); err != nil {
			return f, status.Errorf(codes.InvalidArgument, "malformed SPIFFE ID filter: %v", err)
		}
	}
	if id := p.GetByParentId(); id != nil {
		f.ParentID, err = idFromProto(id)
		if err == nil && f.ParentID.TrustDomain() != s.cfg.TrustDomain {
			err = fmt.Errorf("%q is not a member of trust domain %q", f.ParentID, s.cfg.TrustDomain.Name())
		}
		if err != nil {
			return f, status.Errorf(codes.InvalidArgument, "malformed parent ID filter: %v", err)
		}
	}
	if m := p.GetBySelectors(); m != nil {
		f.Selectors, f.SelectorMatch = selectors.NewSet(selectorsFromProto(m.Selectors)...), entries.Match(m.Match)
		if len(f.Selectors) == 0 {
			return f, status.Error(codes.InvalidArgument, "malformed selectors filter: empty selector set")
		}
		for _, sel := range f.Selectors {
			if err := sel.Validate(); err != nil {
				return f, status.Errorf(codes.InvalidArgument, "malformed selectors filter: %v", err)
			}
		}
	}
	if m := p.GetByFederatesWith(); m != nil {
		f.FederateMatch = entries.Match(m.Match)
		if len(m.TrustDomains) == 0 {
			return f, status.Error(codes.InvalidArgument, "malformed federates with filter: empty trust domain set")
		}
		for _, name := range m.TrustDomains {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return f, status.Errorf(codes.InvalidArgument, "malformed federates with filter: %v", err)
			}
			f.FederatesWith = append(f.FederatesWith, td.Name())
		}
	}
	return f, nil
}
