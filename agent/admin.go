// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/assay-id/assay/bpf/hooks"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	evidencepb "github.com/assay-id/assay/proto/evidence"
	"github.com/assay-id/assay/selectors"
)

// adminServer answers `assay agent status` and `assay explain`.
type adminServer struct {
	adminpb.UnimplementedAgentAdminServer
	a *Agent
}

// Status tells how the agent is.
func (s *adminServer) Status(context.Context, *adminpb.StatusRequest) (*adminpb.StatusResponse, error) {
	state := s.a.svids.State()
	resp := &adminpb.StatusResponse{
		TrustDomain: s.a.conf.trustDomain.Name(), Tier: evidencepb.Tier(s.a.evidence.Tier()),
		Connected: s.a.server.Connected(), Revision: state.Revision,
		Entries: uint32(state.Entries), Svids: uint32(state.SVIDs), Streams: uint32(s.a.streams.Load()),
	}
	if !state.Synced.IsZero() {
		resp.SyncedAt = state.Synced.Unix()
	}
	if id, until, ok := s.a.server.Identity(); ok {
		resp.AgentId, resp.SvidExpiresAt = id.String(), until.Unix()
	}
	if s.a.sensor == nil {
		resp.Hooks = []*adminpb.Hook{{Name: "kernel sensor", State: string(hooks.Unavailable), Detail: s.a.blind.Error()}}
		return resp, nil
	}
	resp.LostEvents, resp.Refused = s.a.sensor.Lost(), s.a.sensor.Refused()
	for _, h := range s.a.sensor.Hooks() {
		resp.Hooks = append(resp.Hooks, &adminpb.Hook{Name: h.Name, State: string(h.State), Detail: h.Detail})
	}
	return resp, nil
}

// nearestShown is how many entries that do not match an explanation lists.
const nearestShown = 3

// Explain tells what a process would be attested as, and which entries that matches.
func (s *adminServer) Explain(ctx context.Context, req *adminpb.ExplainRequest) (*adminpb.ExplainResponse, error) {
	facts, err := s.a.attestor.PID(ctx, int(req.Pid))
	if err != nil {
		return &adminpb.ExplainResponse{Refusal: err.Error()}, nil
	}
	set := selectors.Derive(facts)
	resp := &adminpb.ExplainResponse{Facts: explained(facts), Selectors: set.Strings()}
	for _, e := range s.a.svids.Match(set) {
		resp.Matches = append(resp.Matches, &adminpb.Match{EntryId: e.ID, SpiffeId: e.SPIFFEID.String()})
	}
	for _, n := range s.a.svids.Nearest(set, nearestShown) {
		resp.Nearest = append(resp.Nearest, &adminpb.Match{EntryId: n.Entry.ID, SpiffeId: n.Entry.SPIFFEID.String(), Missing: n.Missing.Strings()})
	}
	return resp, nil
}

// explained is the part of the facts that the selectors do not say.
func explained(f *selectors.Facts) *evidencepb.Facts {
	pb := &evidencepb.Facts{
		Tier:       evidencepb.Tier(f.Tier),
		Process:    &evidencepb.ProcessKey{BootId: f.Process.BootID, Tgid: f.Process.TGID, StartBoottime: f.Process.StartBoottime, ExecId: f.Process.ExecID},
		Executable: &evidencepb.Executable{Path: f.Executable.Path, Size: f.Executable.Size},
		Cgroup:     &evidencepb.Cgroup{Id: f.Cgroup.ID, Path: f.Cgroup.Path},
		Observed:   f.Observed, LineageTruncated: f.LineageTruncated,
	}
	for _, a := range f.Ancestors {
		pb.Ancestors = append(pb.Ancestors, &evidencepb.Ancestor{ExecId: a.ExecID, Tgid: a.TGID, Observed: a.Observed, Executable: &evidencepb.Executable{Path: a.Executable.Path}})
	}
	return pb
}
