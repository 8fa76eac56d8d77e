// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"slices"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodepb "github.com/assay-id/assay/proto/node"
)

// poller knows what a server of SPIRE's said of the entries, so that only those that changed are sent again.
type poller struct {
	conn  *grpc.ClientConn
	known map[string]*types.Entry
	first bool
	whole bool // the server can not tell what changed
}

// entries returns what changed since the last call; everything, the first time.
func (p *poller) entries(ctx context.Context) (*nodepb.WatchResponse, error) {
	var now map[string]*types.Entry
	var err error
	if !p.whole {
		if now, err = p.sync(ctx); status.Code(err) == codes.Unimplemented {
			p.whole = true
		}
	}
	if p.whole {
		var all *entryv1.GetAuthorizedEntriesResponse
		all, err = entryv1.NewEntryClient(p.conn).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{}, grpc.MaxCallRecvMsgSize(maxFeedMessage))
		now = byID(all.GetEntries())
	}
	if err != nil {
		return nil, err
	}
	msg := &nodepb.WatchResponse{Full: p.first}
	for id, e := range now {
		if old := p.known[id]; old == nil || old.RevisionNumber != e.RevisionNumber || old.CreatedAt != e.CreatedAt {
			msg.Entries = append(msg.Entries, e)
		}
	}
	for id := range p.known {
		if now[id] == nil {
			msg.Removed = append(msg.Removed, id)
		}
	}
	p.known, p.first = now, false
	return msg, nil
}

func byID(list []*types.Entry) map[string]*types.Entry {
	m := make(map[string]*types.Entry, len(list))
	for _, e := range list {
		m[e.GetId()] = e
	}
	return m
}

var errSync = errors.New("the server broke the rules of SyncAuthorizedEntries")

// sync runs SPIRE's SyncAuthorizedEntries: the server sends all entries if they are few, else their revisions, and
// then those that it is asked for, in pages as long as its own.
func (p *poller) sync(ctx context.Context) (map[string]*types.Entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := entryv1.NewEntryClient(p.conn).SyncAuthorizedEntries(ctx, grpc.MaxCallRecvMsgSize(maxFeedMessage))
	if err != nil {
		return nil, err
	}
	// An error of Send is io.EOF; Recv has the reason.
	_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{})
	msg, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if len(msg.EntryRevisions) == 0 {
		now := byID(msg.Entries)
		for msg.More {
			if msg, err = stream.Recv(); err != nil {
				return nil, err
			}
			for _, e := range msg.Entries {
				now[e.GetId()] = e
			}
		}
		return now, nil
	}
	now, ask, page := map[string]*types.Entry{}, []string(nil), len(msg.EntryRevisions)
	for {
		for _, r := range msg.EntryRevisions {
			if old := p.known[r.Id]; old != nil && old.RevisionNumber == r.RevisionNumber && old.CreatedAt == r.CreatedAt {
				now[r.Id] = old
			} else {
				ask = append(ask, r.Id)
			}
		}
		if !msg.More {
			break
		}
		if msg, err = stream.Recv(); err != nil {
			return nil, err
		}
		if len(msg.Entries) > 0 {
			return nil, errSync
		}
	}
	slices.Sort(ask)
	for ids := range slices.Chunk(ask, page) {
		_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: ids})
		for more := true; more; {
			if msg, err = stream.Recv(); err != nil {
				return nil, err
			}
			if len(msg.EntryRevisions) > 0 {
				return nil, errSync
			}
			for _, e := range msg.Entries { // one that is gone meanwhile does not come
				now[e.GetId()] = e
			}
			more = msg.More
		}
	}
	return now, nil
}
