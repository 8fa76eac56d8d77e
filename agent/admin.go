// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/assay-id/assay/bpf/hooks"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	evidencepb "github.com/assay-id/assay/proto/evidence"
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
	now := s.a.server.State()
	resp.State, resp.StateSince, resp.StateReason, resp.ServerAddress = string(now.State), now.Since.Unix(), now.Reason, now.Server
	if !now.Next.IsZero() {
		resp.NextTry = now.Next.Unix()
	}
	resp.Degraded = s.a.server.Degraded()
	if s.a.offline != nil {
		if text := s.a.offline.Status(); text != "" {
			resp.Degraded = append(resp.Degraded, text)
		}
	}
	if !state.Synced.IsZero() {
		resp.SyncedAt = state.Synced.Unix()
	}
	if id, until, ok := s.a.server.Identity(); ok {
		resp.AgentId, resp.SvidExpiresAt = id.String(), until.Unix()
	}
	if s.a.sensor == nil {
		resp.Degraded = append(resp.Degraded, "there is no kernel sensor: evidence is what /proc tells")
		resp.Hooks = []*adminpb.Hook{{Name: "kernel sensor", State: string(hooks.Unavailable), Detail: s.a.blind.Error()}}
		return resp, nil
	}
	resp.LostEvents, resp.Refused = s.a.sensor.Lost(), s.a.sensor.Refused()
	for _, h := range s.a.sensor.Hooks() {
		resp.Hooks = append(resp.Hooks, &adminpb.Hook{Name: h.Name, State: string(h.State), Detail: h.Detail})
	}
	return resp, nil
}
