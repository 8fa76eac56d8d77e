// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/process"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	evidencepb "github.com/assay-id/assay/proto/evidence"
	"github.com/assay-id/assay/selectors"
)

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
	resp.Nearest = near(s.a.svids.Nearest(set, nearestShown))
	return resp, nil
}

func near(list []selectors.Near) (out []*adminpb.Match) {
	for _, n := range list {
		out = append(out, &adminpb.Match{EntryId: n.Entry.ID, SpiffeId: n.Entry.SPIFFEID.String(), Missing: n.Missing.Strings()})
	}
	return out
}

// ListDenials tells of callers who were given nothing.
func (s *adminServer) ListDenials(_ context.Context, req *adminpb.ListDenialsRequest) (*adminpb.ListDenialsResponse, error) {
	list := s.a.memory.Denials()
	if req.Reference != "" {
		x, ok := s.a.memory.Denial(req.Reference)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "no denial is remembered by the reference %q: the agent forgets the oldest, and all when it ends; its log has them", req.Reference)
		}
		list = []delivery.Denial{x}
	}
	if n := int(req.Limit); n > 0 && n < len(list) {
		list = list[:n]
	}
	return &adminpb.ListDenialsResponse{Denials: denials(list)}, nil
}

func denials(list []delivery.Denial) (out []*adminpb.Denial) {
	for _, x := range list {
		d := &adminpb.Denial{Reference: x.Ref, Time: x.Time.Unix(), Reason: x.Reason, Nearest: near(x.Nearest)}
		if x.Facts != nil {
			d.Facts, d.Selectors = explained(x.Facts), selectors.Derive(x.Facts).Strings()
		}
		out = append(out, d)
	}
	return out
}

// ExplainIdentity tells who may have, and who lately was given, a SPIFFE ID on this node.
func (s *adminServer) ExplainIdentity(_ context.Context, req *adminpb.ExplainIdentityRequest) (*adminpb.ExplainIdentityResponse, error) {
	id, err := spiffeid.FromString(req.SpiffeId)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no SPIFFE ID: %v", req.SpiffeId, err)
	}
	resp := &adminpb.ExplainIdentityResponse{}
	for _, e := range s.a.svids.Named(id) {
		resp.Entries = append(resp.Entries, &adminpb.Match{EntryId: e.ID, SpiffeId: req.SpiffeId, Missing: e.SelectorSet().Strings()})
	}
	for _, d := range s.a.memory.Deliveries() {
		if d.SPIFFEID == req.SpiffeId {
			resp.Deliveries = append(resp.Deliveries, &adminpb.Delivery{Time: d.Time.Unix(), Kind: d.Kind, Serial: d.Serial, EntryId: d.Entry, Process: processKey(d.Process),
				Sha256: d.SHA256.String(), Via: d.Via, Running: s.a.runs(d.Process)})
		}
	}
	resp.Denials = denials(slices.DeleteFunc(s.a.memory.Denials(), func(x delivery.Denial) bool {
		return !slices.ContainsFunc(x.Nearest, func(n selectors.Near) bool { return n.Entry.SPIFFEID == id })
	}))
	return resp, nil
}

// runs reports whether the process still runs the image that the key names.
func (a *Agent) runs(key selectors.ProcessKey) bool {
	p, err := process.Pin(a.evidence, key)
	if err != nil {
		return false
	}
	defer p.Close()
	return p.Still() == nil
}

func processKey(k selectors.ProcessKey) *evidencepb.ProcessKey {
	return &evidencepb.ProcessKey{BootId: k.BootID, Tgid: k.TGID, StartBoottime: k.StartBoottime, ExecId: k.ExecID}
}

// explained is the part of the facts that the selectors do not say.
func explained(f *selectors.Facts) *evidencepb.Facts {
	pb := &evidencepb.Facts{
		Tier:       evidencepb.Tier(f.Tier),
		Process:    processKey(f.Process),
		Executable: &evidencepb.Executable{Path: f.Executable.Path, Size: f.Executable.Size},
		Cgroup:     &evidencepb.Cgroup{Id: f.Cgroup.ID, Path: f.Cgroup.Path},
		Observed:   f.Observed, LineageTruncated: f.LineageTruncated,
	}
	for _, a := range f.Ancestors {
		pb.Ancestors = append(pb.Ancestors, &evidencepb.Ancestor{ExecId: a.ExecID, Tgid: a.TGID, Observed: a.Observed, Executable: &evidencepb.Executable{Path: a.Executable.Path}})
	}
	return pb
}
