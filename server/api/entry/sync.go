// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"context"
	"errors"
	"io"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
)

// syncPage is how many entries or revisions one message of SyncAuthorizedEntries holds.
const syncPage = 500

func (s *Service) authorized(ctx context.Context) []*selectors.Entry {
	id := gate.CallerOf(ctx).ID
	return s.Entries.Authorized(id, s.NodeSelectors(id))
}

// GetAuthorizedEntries returns all entries that the calling agent may hold.
func (s *Service) GetAuthorizedEntries(ctx context.Context, req *entryv1.GetAuthorizedEntriesRequest) (*entryv1.GetAuthorizedEntriesResponse, error) {
	resp := &entryv1.GetAuthorizedEntriesResponse{}
	for _, e := range s.authorized(ctx) {
		resp.Entries = append(resp.Entries, wire.Entry(e, req.OutputMask))
	}
	return resp, nil
}

// SyncAuthorizedEntries sends the entries themselves if they fit into one message. Otherwise
// it sends all revisions in pages and then, for each request, the entries that it names. The
// entries are those of the moment when the stream opened.
func (s *Service) SyncAuthorizedEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer) error {
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	switch {
	case len(first.Ids) > 0:
		return status.Error(codes.InvalidArgument, "specifying IDs on initial request is not supported")
	case first.OutputMask != nil && !first.OutputMask.RevisionNumber:
		return status.Error(codes.InvalidArgument, "revision number cannot be masked")
	}
	all := s.authorized(stream.Context())
	if len(all) <= syncPage {
		return stream.Send(&entryv1.SyncAuthorizedEntriesResponse{Entries: wire.Entries(all, first.OutputMask)})
	}
	if err := sendRevisions(stream, all); err != nil {
		return err
	}
	byID := make(map[string]*selectors.Entry, len(all))
	for _, e := range all {
		byID[e.ID] = e
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return endOfStream(err)
		}
		var asked []*selectors.Entry
		for _, id := range req.Ids {
			if e := byID[id]; e != nil {
				asked = append(asked, e)
			}
		}
		if err := sendEntries(stream, asked, first.OutputMask); err != nil {
			return err
		}
	}
}

// endOfStream: an agent that has what it wants just goes.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func sendRevisions(stream entryv1.Entry_SyncAuthorizedEntriesServer, all []*selectors.Entry) error {
	for at := 0; at < len(all); at += syncPage {
		end := min(at+syncPage, len(all))
		page := &entryv1.SyncAuthorizedEntriesResponse{More: end < len(all)}
		for _, e := range all[at:end] {
			page.EntryRevisions = append(page.EntryRevisions, wire.Revision(e))
		}
		if err := stream.Send(page); err != nil {
			return err
		}
	}
	return nil
}

// sendEntries sends at least one message.
func sendEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer, es []*selectors.Entry, mask *types.EntryMask) error {
	for at := 0; ; at += syncPage {
		end := min(at+syncPage, len(es))
		err := stream.Send(&entryv1.SyncAuthorizedEntriesResponse{Entries: wire.Entries(es[at:end], mask), More: end < len(es)})
		if err != nil || end == len(es) {
			return err
		}
	}
}
