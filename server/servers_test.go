// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"path/filepath"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
)

// TestTwoServers share one store: agents and operators may talk to either.
func TestTwoServers(t *testing.T) {
	one := start(t, nil)
	two := start(t, func(c *server.Config) {
		c.Store = &server.StoreConfig{Endpoints: []string{"unix://" + filepath.Join(one.conf.DataDir, "store", "run", "client.sock")}}
	})
	waitFor(t, "both authorities on the first server", func() bool {
		b, err := one.admin.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
		if err != nil {
			t.Fatal(err)
		}
		one.bundle = bundleOf(t, b)
		return len(b.X509Authorities) == 2 && b.SequenceNumber == 5
	})

	// Attested by one, served by two at once: a token and a node are everybody's.
	a := one.newAgent()
	atTwo := two.dial(a.cert)
	stream := atTwo.watch(t.Context(), t, &nodev1.WatchRequest{})
	if m, err := stream.Recv(); err != nil || !m.Full {
		t.Fatalf("the first message from the other server: %v, %v", m, err)
	}
	w := one.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	if m, err := stream.Recv(); err != nil || len(m.Entries) != 1 || m.Entries[0].Id != w.Id {
		t.Errorf("an entry made on one server, pushed by the other: %v, %v", m, err)
	}
	resp, err := two.admin.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")}}})
	if err != nil || codes.Code(resp.Results[0].Status.Code) != codes.AlreadyExists || resp.Results[0].Entry.GetId() != w.Id {
		t.Errorf("the same entry on the other server: %v, %v", resp, err)
	}
	if _, err := one.admin.agent.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: a.id}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantDenied(t, "banned on one server, streaming from the other", err, types.PermissionDeniedDetails_AGENT_BANNED)
	if _, err := two.newAgentAcross(one).entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}, grpc.WaitForReady(true)); status.Code(err) != codes.OK {
		t.Errorf("a token of one server, used on the other: %v", err)
	}
}

// newAgentAcross attests here with a token from another server.
func (e *env) newAgentAcross(other *env) *agent {
	e.t.Helper()
	return e.newAgentWith(other.token(nil))
}
