// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/server"
)

func idText(id *types.SPIFFEID) string { return "spiffe://" + id.TrustDomain + id.Path }

// TestSuspension: a suspended node loses its streams and its signatures at once, and its agent is
// told why in words and in a detail; then it is readmitted.
func TestSuspension(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	w := e.create(&types.Entry{ParentId: a.id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0")})[0]
	watch := a.watch(t.Context(), t, &nodev1.WatchRequest{})
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	n, err := e.admin.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: idText(a.id), Reason: "disk replaced"})
	if err != nil {
		t.Fatal(err)
	}
	if s := n.Standing; s.State != "suspended" || s.By != "operator "+me.Username || s.Reason != "disk replaced" || s.Since == 0 || len(n.History) != 1 {
		t.Errorf("%v", n)
	}
	suspended := func(what string, err error) {
		t.Helper()
		wantCode(t, what, err, codes.PermissionDenied)
		var got *nodev1.Standing
		for _, d := range status.Convert(err).Details() {
			if s, ok := d.(*nodev1.Standing); ok {
				got = s
			}
		}
		if got.GetState() != "suspended" || !strings.Contains(got.GetReason(), "disk replaced") || got.GetAttestAgain() {
			t.Errorf("%s: detail %v", what, got)
		}
		if text := status.Convert(err).Message(); !strings.Contains(text, "disk replaced") || !strings.Contains(text, "assay node readmit "+idText(a.id)) {
			t.Errorf("%s: %q", what, text)
		}
	}
	_, err = watch.Recv()
	suspended("the open stream", err)
	_, err = a.node.SignX509SVID(t.Context(), &nodev1.SignX509SVIDRequest{EntryId: w.Id})
	suspended("signing", err)
	_, err = a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	suspended("reading entries", err)
	_, err = a.agent.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{})
	suspended("renewing", err)

	// SPIRE's API lists it, as one that is not banned.
	got, err := e.admin.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: a.id})
	if err != nil || got.Banned || got.X509SvidSerialNumber == "" {
		t.Errorf("GetAgent = %v, %v", got, err)
	}
	list, err := e.admin.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{State: "suspended"})
	if err != nil || len(list.Nodes) != 1 || list.Nodes[0].SpiffeId != idText(a.id) {
		t.Errorf("ListNodes = %v, %v", list, err)
	}
	if _, err := e.admin.nodes.Readmit(t.Context(), &adminv1.ReadmitRequest{SpiffeId: idText(a.id)}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
		t.Errorf("after readmission: %v", err)
	}
	if _, err := e.admin.nodes.Ban(t.Context(), &adminv1.BanRequest{SpiffeId: idText(a.id), Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	_, err = a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	wantDenied(t, "banned", err, types.PermissionDeniedDetails_AGENT_BANNED)
	n, err = e.admin.nodes.GetNode(t.Context(), &adminv1.GetNodeRequest{SpiffeId: idText(a.id)})
	if err != nil || n.Standing.State != "banned" || n.Standing.Reason != "stolen" || len(n.History) != 3 {
		t.Errorf("GetNode = %v, %v", n, err)
	}
}

func TestNodeAdminRefusals(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	_, err := a.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	wantDenied(t, "an agent as operator", err)
	_, err = e.dial(nil).nodes.Suspend(t.Context(), &adminv1.SuspendRequest{SpiffeId: idText(a.id)})
	wantDenied(t, "anybody as operator", err)
	for what, call := range map[string]func() error{
		"no ID": func() error { _, err := e.admin.nodes.Suspend(t.Context(), &adminv1.SuspendRequest{}); return err },
		"a workload": func() error {
			_, err := e.admin.nodes.GetNode(t.Context(), &adminv1.GetNodeRequest{SpiffeId: "spiffe://example.org/w"})
			return err
		},
		"a page token": func() error {
			_, err := e.admin.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{PageToken: "x"})
			return err
		},
		"a long reason": func() error {
			_, err := e.admin.nodes.Ban(t.Context(), &adminv1.BanRequest{SpiffeId: idText(a.id), Reason: strings.Repeat("x", 501)})
			return err
		},
		"a bad hash": func() error {
			_, err := e.admin.nodes.AddInventory(t.Context(), &adminv1.AddInventoryRequest{Devices: []*adminv1.Device{{EkHash: "00"}}})
			return err
		},
		"a long label": func() error {
			_, err := e.admin.nodes.AddInventory(t.Context(), &adminv1.AddInventoryRequest{Devices: []*adminv1.Device{{EkHash: strings.Repeat("0", 64), Label: strings.Repeat("x", 1001)}}})
			return err
		},
		"no such hash": func() error {
			_, err := e.admin.nodes.RemoveInventory(t.Context(), &adminv1.RemoveInventoryRequest{EkHashes: []string{"x"}})
			return err
		},
		"1,001 devices": func() error {
			_, err := e.admin.nodes.AddInventory(t.Context(), &adminv1.AddInventoryRequest{Devices: make([]*adminv1.Device, 1001)})
			return err
		},
	} {
		wantCode(t, what, call(), codes.InvalidArgument)
	}
	_, err = e.admin.nodes.Readmit(t.Context(), &adminv1.ReadmitRequest{SpiffeId: "spiffe://example.org/spire/agent/x/y"})
	wantCode(t, "an unknown node", err, codes.NotFound)
	if _, err := e.admin.nodes.Ban(t.Context(), &adminv1.BanRequest{SpiffeId: idText(a.id)}); err != nil {
		t.Fatal(err)
	}
	_, err = e.admin.nodes.Readmit(t.Context(), &adminv1.ReadmitRequest{SpiffeId: idText(a.id)})
	wantCode(t, "readmitting a banned node", err, codes.FailedPrecondition)
}

// TestRoots: operators see whose TPMs the server trusts.
func TestRoots(t *testing.T) {
	maker := newForeignCA(t, "maker.org")
	path := filepath.Join(t.TempDir(), "ek.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: maker.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, func(c *server.Config) { c.TPM = &server.TPMConfig{EKCAPath: path} })
	roots, err := e.admin.nodes.ListRoots(t.Context(), &adminv1.ListRootsRequest{})
	if err != nil || len(roots.Certificates) != 1 || !bytes.Equal(roots.Certificates[0], maker.cert.Raw) {
		t.Errorf("ListRoots = %v, %v", roots, err)
	}
}

func TestInventory(t *testing.T) {
	e := start(t, nil)
	hash := strings.Repeat("ab", 32)
	if _, err := e.admin.nodes.AddInventory(t.Context(), &adminv1.AddInventoryRequest{Devices: []*adminv1.Device{{EkHash: hash, Label: "rack 7", Group: "db"}}}); err != nil {
		t.Fatal(err)
	}
	list, err := e.admin.nodes.ListInventory(t.Context(), &adminv1.ListInventoryRequest{})
	if err != nil || len(list.Devices) != 1 || list.Devices[0].Label != "rack 7" || list.Devices[0].Group != "db" || list.Devices[0].AddedAt == 0 || !strings.HasPrefix(list.Devices[0].By, "operator ") {
		t.Errorf("ListInventory = %v, %v", list, err)
	}
	got, err := e.admin.nodes.RemoveInventory(t.Context(), &adminv1.RemoveInventoryRequest{EkHashes: []string{hash}})
	if err != nil || got.Removed != 1 {
		t.Errorf("RemoveInventory = %v, %v", got, err)
	}
}
