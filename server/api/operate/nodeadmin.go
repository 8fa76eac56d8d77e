// SPDX-License-Identifier: Apache-2.0

package operate

import (
	"context"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/policy"
)

// nodeAdminService is our own assay.nodeadmin.v1.NodeAdmin.
type nodeAdminService struct {
	adminv1.UnimplementedNodeAdminServer
	*Services
}

// ListNodes lists nodes in the order in which they came, without what makes them long.
func (s *nodeAdminService) ListNodes(ctx context.Context, req *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	list, next, err := s.Nodes.List(nodes.Filter{State: nodes.State(req.State)}, int(req.PageSize), req.PageToken)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "list nodes: %v", err)
	}
	resp := &adminv1.ListNodesResponse{NextPageToken: next}
	for _, n := range list {
		if gate.ScopeOf(ctx).Node(n.ID) != nil {
			continue
		}
		p := wire.Node(n, s.device(n))
		p.Selectors, p.Checks, p.History = nil, nil, nil
		resp.Nodes = append(resp.Nodes, p)
	}
	return resp, nil
}

// GetNode returns all that is known of one node.
func (s *nodeAdminService) GetNode(ctx context.Context, req *adminv1.GetNodeRequest) (*adminv1.Node, error) {
	id, err := wire.ParseAgentID(s.TrustDomain, req.SpiffeId)
	if err == nil {
		err = gate.ScopeOf(ctx).Node(id)
	}
	if err != nil {
		return nil, err
	}
	return s.nodeOf(id)
}

// Approve lets a pending node in.
func (s *nodeAdminService) Approve(ctx context.Context, req *adminv1.ApproveRequest) (*adminv1.Node, error) {
	return s.change(ctx, req.SpiffeId, "node approved", "", func(id spiffeid.ID, by string) error { return s.Nodes.Approve(ctx, id, by) })
}

// Suspend makes a node's SVID count no longer.
func (s *nodeAdminService) Suspend(ctx context.Context, req *adminv1.SuspendRequest) (*adminv1.Node, error) {
	return s.change(ctx, req.SpiffeId, "node suspended", req.Reason, func(id spiffeid.ID, by string) error { return s.Nodes.Suspend(ctx, id, req.Reason, by) })
}

// Readmit ends a suspension.
func (s *nodeAdminService) Readmit(ctx context.Context, req *adminv1.ReadmitRequest) (*adminv1.Node, error) {
	return s.change(ctx, req.SpiffeId, "node readmitted", "", func(id spiffeid.ID, by string) error { return s.Nodes.Readmit(ctx, id, by) })
}

// Ban refuses a node until it is evicted.
func (s *nodeAdminService) Ban(ctx context.Context, req *adminv1.BanRequest) (*adminv1.Node, error) {
	return s.change(ctx, req.SpiffeId, "node banned", req.Reason, func(id spiffeid.ID, by string) error { return s.Nodes.Ban(ctx, id, req.Reason, by) })
}

const maxReason = 500 // bytes

func (s *nodeAdminService) change(ctx context.Context, text, event, reason string, do func(id spiffeid.ID, by string) error) (*adminv1.Node, error) {
	id, err := wire.ParseAgentID(s.TrustDomain, text)
	if err == nil {
		err = gate.ScopeOf(ctx).Node(id)
	}
	if err != nil {
		return nil, err
	}
	if len(reason) > maxReason {
		return nil, status.Errorf(codes.InvalidArgument, "the reason is longer than %d bytes", maxReason)
	}
	by := gate.CallerOf(ctx).Operator()
	if err := do(id, by); err != nil {
		return nil, wire.AgentError(err)
	}
	gate.Log(ctx).Info(event, "agent", id, "by", by, "reason", reason)
	return s.nodeOf(id)
}

func (s *nodeAdminService) nodeOf(id spiffeid.ID) (*adminv1.Node, error) {
	n := s.Nodes.Get(id)
	if n == nil {
		return nil, status.Errorf(codes.NotFound, "there is no node %s; `assay node list` shows those that there are", id)
	}
	p := wire.Node(n, s.device(n))
	if s.Judge != nil {
		for _, v := range s.Judge.Vouched(n.ID) {
			p.Vouched = append(p.Vouched, wire.Vouched(v))
		}
	}
	return p, nil
}

// device is the node's place in the inventory; nil without one.
func (s *nodeAdminService) device(n *nodes.Node) *nodes.Device {
	if hash, ok := strings.CutPrefix(n.ID.Path(), "/spire/agent/"+tpm.AttestorType+"/"); ok {
		if ek, err := nodes.ParseEK(hash); err == nil {
			return s.Inventory.Get(ek)
		}
	}
	return nil
}

const maxDevices = 1000 // in one call

// ListInventory returns the TPMs that operators listed.
func (s *nodeAdminService) ListInventory(context.Context, *adminv1.ListInventoryRequest) (*adminv1.ListInventoryResponse, error) {
	resp := &adminv1.ListInventoryResponse{}
	for _, d := range s.Inventory.List() {
		resp.Devices = append(resp.Devices, wire.Device(d))
	}
	return resp, nil
}

// AddInventory adds all the devices, or none if one is malformed.
func (s *nodeAdminService) AddInventory(ctx context.Context, req *adminv1.AddInventoryRequest) (*adminv1.AddInventoryResponse, error) {
	if len(req.Devices) > maxDevices {
		return nil, status.Errorf(codes.InvalidArgument, "%d devices in one call; send at most %d", len(req.Devices), maxDevices)
	}
	var devices []nodes.Device
	for _, p := range req.Devices {
		d, err := wire.ReadDevice(p)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		devices = append(devices, d)
	}
	by := gate.CallerOf(ctx).Operator()
	if err := s.Inventory.Add(ctx, devices, by); err != nil {
		return nil, wire.Error(err)
	}
	gate.Log(ctx).Info("inventory added", "devices", len(devices), "by", by)
	return &adminv1.AddInventoryResponse{}, nil
}

// RemoveInventory takes TPMs out; admitted nodes notice when they attest next.
func (s *nodeAdminService) RemoveInventory(ctx context.Context, req *adminv1.RemoveInventoryRequest) (*adminv1.RemoveInventoryResponse, error) {
	var eks []selectors.Digest
	for _, text := range req.EkHashes {
		ek, err := nodes.ParseEK(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		eks = append(eks, ek)
	}
	n, err := s.Inventory.Remove(ctx, eks)
	if err != nil {
		return nil, wire.Error(err)
	}
	gate.Log(ctx).Info("inventory removed", "devices", n, "by", gate.CallerOf(ctx).Operator())
	return &adminv1.RemoveInventoryResponse{Removed: int32(n)}, nil
}

// ListRoots returns the CAs of TPM makers that the server trusts.
func (s *nodeAdminService) ListRoots(context.Context, *adminv1.ListRootsRequest) (*adminv1.ListRootsResponse, error) {
	resp := &adminv1.ListRootsResponse{}
	for _, c := range s.EKRoots {
		resp.Certificates = append(resp.Certificates, c.Raw)
	}
	return resp, nil
}

// CheckNodes tells which nodes the present rules, or those proposed, would refuse, and why.
func (s *nodeAdminService) CheckNodes(_ context.Context, req *adminv1.CheckNodesRequest) (*adminv1.CheckNodesResponse, error) {
	if s.Judge == nil {
		return nil, status.Error(codes.FailedPrecondition, "this server judges no nodes")
	}
	var proposed []*policy.Group
	for _, p := range req.Groups {
		g, err := wire.ReadGroup(p)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		proposed = append(proposed, g)
	}
	list, _, err := s.Nodes.List(nodes.Filter{AttestationType: tpm.AttestorType, State: nodes.StateAdmitted}, 0, "")
	if err != nil {
		return nil, wire.Error(err)
	}
	resp := &adminv1.CheckNodesResponse{Judged: int32(len(list))}
	for _, n := range list {
		findings, filesKnown, err := s.Judge.Check(n, req.Group, proposed)
		if err == nil && !filesKnown {
			resp.FilesUnknown = append(resp.FilesUnknown, n.ID.String())
		}
		if err != nil || len(findings) > 0 {
			resp.Refused = append(resp.Refused, wire.Findings(n.ID, findings, err))
		}
	}
	return resp, nil
}
