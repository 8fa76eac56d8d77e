// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestEntries is what spire-server's CLI and the controller manager do (T8 and §3 of spire-wire).
func TestEntries(t *testing.T) {
	e := start(t, nil)
	in := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/w"), Selectors: sel("s", "b", "s", "a"), DnsNames: []string{"z.example", "A.example"}, Hint: "h", StoreSvid: true, JwtSvidTtl: 7}
	made := e.create(in)[0]
	want := proto.Clone(in).(*types.Entry)
	want.Id, want.CreatedAt, want.Selectors = made.Id, made.CreatedAt, sel("s", "a", "s", "b")
	if made.Id == "" || made.CreatedAt == 0 || !proto.Equal(made, want) {
		t.Errorf("created %v, want the request with id and created_at, and its selectors in order", made)
	}

	twin := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/w"), Selectors: sel("s", "a", "s", "b")}
	bad := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/spire/x"), Selectors: sel("s", "a")}
	fed := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/f"), Selectors: sel("s", "a"), FederatesWith: []string{"other.org"}}
	dup := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/f"), Selectors: sel("s", "a", "s", "a")}
	ttl := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/f"), Selectors: sel("s", "a"), X509SvidTtl: -1}
	good := &types.Entry{ParentId: sid("/p"), SpiffeId: sid("/good"), Selectors: sel("s", "a")}
	resp, err := e.admin.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{twin, bad, fed, dup, ttl, {}, good}})
	if err != nil || len(resp.Results) != 7 {
		t.Fatal(resp, err)
	}
	for i, want := range []struct {
		code codes.Code
		text string
	}{
		{codes.AlreadyExists, "similar entry already exists"},
		{codes.InvalidArgument, "failed to convert entry: "},
		{codes.Internal, `failed to create entry: unable to find federated bundle "spiffe://other.org"`},
		{codes.AlreadyExists, "failed to create entry: datastore-sql: "},
		{codes.InvalidArgument, "failed to create entry: datastore-validation: "},
		{codes.InvalidArgument, "failed to convert entry: "},
		{codes.OK, "OK"},
	} {
		r := resp.Results[i]
		if codes.Code(r.Status.GetCode()) != want.code || !strings.HasPrefix(r.Status.GetMessage(), want.text) {
			t.Errorf("item %d: %v, want %s %q", i, r.Status, want.code, want.text)
		}
		if hasEntry := r.Entry != nil; hasEntry != (i == 0 || i == 6) {
			t.Errorf("item %d: entry %v", i, r.Entry)
		}
	}
	if resp.Results[0].Entry.GetId() != made.Id {
		t.Errorf("the similar entry is %v, want the first", resp.Results[0].Entry)
	}

	// A full replacement clears what is not named; a mask leaves the rest alone.
	update := func(p *types.Entry, mask *types.EntryMask) *entryv1.BatchUpdateEntryResponse_Result {
		t.Helper()
		resp, err := e.admin.entry.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{p}, InputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Results[0]
	}
	r := update(&types.Entry{Id: made.Id, Hint: "new"}, &types.EntryMask{Hint: true})
	if r.Status.Code != 0 || r.Entry.Hint != "new" || r.Entry.JwtSvidTtl != 7 || r.Entry.RevisionNumber != 1 || r.Entry.Id != made.Id {
		t.Errorf("masked update: %v", r)
	}
	r = update(&types.Entry{Id: made.Id, ParentId: sid("/p"), SpiffeId: sid("/w"), Selectors: sel("s", "a", "s", "b")}, nil)
	if r.Status.Code != 0 || r.Entry.Hint != "" || r.Entry.JwtSvidTtl != 0 || r.Entry.DnsNames != nil || r.Entry.RevisionNumber != 2 || r.Entry.CreatedAt != made.CreatedAt {
		t.Errorf("full update: %v", r)
	}
	if r = update(&types.Entry{Id: "none"}, &types.EntryMask{}); codes.Code(r.Status.Code) != codes.NotFound || r.Status.Message != "failed to update entry" {
		t.Errorf("update of nothing: %v", r)
	}
	if r = update(&types.Entry{Id: made.Id}, nil); codes.Code(r.Status.Code) != codes.InvalidArgument {
		t.Errorf("a full update without fields: %v", r)
	}

	got, err := e.admin.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: made.Id, OutputMask: &types.EntryMask{}})
	if err != nil || !proto.Equal(got, &types.Entry{Id: made.Id}) {
		t.Errorf("GetEntry with an empty mask = %v, %v", got, err)
	}
	_, err = e.admin.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{})
	wantCode(t, "GetEntry without id", err, codes.InvalidArgument)
	_, err = e.admin.entry.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: "none"})
	wantCode(t, "GetEntry of nothing", err, codes.NotFound)

	del, err := e.admin.entry.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{"none", "", made.Id}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.NotFound, codes.InvalidArgument, codes.OK} {
		if codes.Code(del.Results[i].Status.Code) != want {
			t.Errorf("delete %d: %v", i, del.Results[i])
		}
	}
	if del.Results[2].Id != made.Id {
		t.Error("the id is not echoed")
	}
}

// TestListEntries: filters and pages as the CLI and the controller manager use them (T7).
func TestListEntries(t *testing.T) {
	e := start(t, nil)
	const n = 501
	var es []*types.Entry
	for i := range n {
		es = append(es, &types.Entry{ParentId: sid("/p"), SpiffeId: sid(fmt.Sprintf("/w%03d", i)), Selectors: sel("s", "a"), Downstream: i == 450})
	}
	made := e.create(es...)
	pages := func(f *entryv1.ListEntriesRequest_Filter, size int32) (ids []string, calls int) {
		t.Helper()
		for token := ""; ; {
			resp, err := e.admin.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{Filter: f, PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			calls++
			for _, x := range resp.Entries {
				ids = append(ids, x.Id)
			}
			if token = resp.NextPageToken; token == "" {
				return ids, calls
			}
		}
	}
	var want []string
	for _, m := range made {
		want = append(want, m.Id)
	}
	ids, calls := pages(&entryv1.ListEntriesRequest_Filter{ByDownstream: wrapperspb.Bool(false)}, 500)
	if !slices.Equal(ids, want) || calls != 3 {
		t.Errorf("by_downstream=false: %d entries in %d calls, want all in creation order in 3", len(ids), calls)
	}
	if ids, calls := pages(nil, 0); !slices.Equal(ids, want) || calls != 1 {
		t.Errorf("page_size 0: %d entries in %d calls", len(ids), calls)
	}
	if ids, _ := pages(&entryv1.ListEntriesRequest_Filter{ByDownstream: wrapperspb.Bool(true)}, 100); !slices.Equal(ids, want[450:451]) {
		t.Errorf("by_downstream=true: %v", ids)
	}
	c, err := e.admin.entry.CountEntries(t.Context(), &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
		ByParentId: sid("/p"), BySelectors: &types.SelectorMatch{Selectors: sel("s", "a"), Match: types.SelectorMatch_MATCH_EXACT}}})
	if err != nil || c.Count != n {
		t.Errorf("CountEntries = %v, %v", c, err)
	}
	for what, f := range map[string]*entryv1.ListEntriesRequest_Filter{
		"empty selectors": {BySelectors: &types.SelectorMatch{}},
		"reserved ID":     {BySpiffeId: sid("/spire/x")},
		"no domains":      {ByFederatesWith: &types.FederatesWithMatch{}},
	} {
		_, err := e.admin.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{Filter: f})
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err = e.admin.entry.ListEntries(t.Context(), &entryv1.ListEntriesRequest{PageSize: 1, PageToken: "garbage"})
	wantCode(t, "bad token", err, codes.Internal)
}

// syncAll does what SPIRE's agent does with SyncAuthorizedEntries.
func syncAll(t *testing.T, a *agent) (entries map[string]*types.Entry, messages int) {
	t.Helper()
	stream, err := a.entry.SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mask := &types.EntryMask{SpiffeId: true, Selectors: true, RevisionNumber: true, CreatedAt: true, Hint: true}
	send := func(r *entryv1.SyncAuthorizedEntriesRequest) {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() *entryv1.SyncAuthorizedEntriesResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		messages++
		return r
	}
	entries = map[string]*types.Entry{}
	keep := func(es []*types.Entry) {
		for _, x := range es {
			entries[x.Id] = x
		}
	}
	send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: mask})
	first := recv()
	if len(first.EntryRevisions) == 0 {
		keep(first.Entries)
		if first.More {
			t.Error("more after the entries themselves")
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("after the only message: %v, want the end", err)
		}
		return entries, messages
	}
	var revs []*entryv1.EntryRevision
	for page := first; ; page = recv() {
		if len(page.Entries) != 0 || len(page.EntryRevisions) > 500 {
			t.Fatalf("revision page with %d entries and %d revisions", len(page.Entries), len(page.EntryRevisions))
		}
		revs = append(revs, page.EntryRevisions...)
		if !page.More {
			break
		}
	}
	var ids []string
	for _, r := range revs {
		if r.Id == "" || r.CreatedAt == 0 {
			t.Fatalf("revision %v", r)
		}
		ids = append(ids, r.Id)
	}
	slices.Sort(ids)
	for part := range slices.Chunk(append(ids, "unknown"), len(first.EntryRevisions)) {
		send(&entryv1.SyncAuthorizedEntriesRequest{Ids: part})
		for {
			page := recv()
			if len(page.EntryRevisions) != 0 {
				t.Fatal("revisions among entries")
			}
			keep(page.Entries)
			if !page.More {
				break
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("after the agent's half close: %v", err)
	}
	return entries, messages
}

// TestSync at the sizes where the protocol changes shape (T6).
func TestSync(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	have := 0
	for _, size := range []int{0, 500, 501, 1200} {
		var es []*types.Entry
		for ; have < size; have++ {
			es = append(es, &types.Entry{ParentId: a.id, SpiffeId: sid(fmt.Sprintf("/w%04d", have)), Selectors: sel("s", "a")})
		}
		e.create(es...)
		got, messages := syncAll(t, a)
		want := map[int]int{0: 1, 500: 1, 501: 2 + 2, 1200: 3 + 3}[size]
		if len(got) != size || messages != want {
			t.Errorf("%d entries: got %d in %d messages, want %d messages", size, len(got), messages, want)
		}
	}
	got, _ := syncAll(t, a)
	var one *types.Entry
	for _, x := range got {
		one = x
		break
	}
	if one.ParentId != nil || one.SpiffeId == nil || one.CreatedAt == 0 {
		t.Errorf("mask not applied: %v", one)
	}
	// The agent learns of a new DNS name only by the revision.
	_, err := e.admin.entry.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{{Id: one.Id, DnsNames: []string{"new.example"}}}, InputMask: &types.EntryMask{DnsNames: true}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := syncAll(t, a); got[one.Id].RevisionNumber != one.RevisionNumber+1 {
		t.Errorf("revision %d after an update, want %d", got[one.Id].RevisionNumber, one.RevisionNumber+1)
	}
	for what, req := range map[string]*entryv1.SyncAuthorizedEntriesRequest{
		"ids first":       {Ids: []string{"x"}},
		"revision masked": {OutputMask: &types.EntryMask{SpiffeId: true}},
	} {
		stream, err := a.entry.SyncAuthorizedEntries(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantCode(t, what, err, codes.InvalidArgument)
	}
}
