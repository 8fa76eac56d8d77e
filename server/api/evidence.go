// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	evidencev1 "github.com/assay-id/assay/proto/evidence"
	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
)

// proof is why something is signed for an entry: which agent asked, and what it said of the process.
type proof struct {
	entry *selectors.Entry
	agent spiffeid.ID
	facts *selectors.Facts // nil: the agent's type may go without evidence
	// What the issuance policy said: its digest, "" without one, and whether to this process only.
	policy     string
	perProcess bool
}

// prove judges what an agent says of a process. The selectors are derived here, from the facts; the
// agent's word for a selector is never taken.
func (s *nodeService) prove(ctx context.Context, entryID string, message *evidencev1.Facts) (proof, error) {
	agent := gate.CallerOf(ctx).ID
	facts, err := wire.ReadFacts(message)
	if err != nil {
		return proof{}, status.Errorf(codes.InvalidArgument, "malformed facts: %v", err)
	}
	e := s.cfg.Entries.AuthorizedEntry(agent, s.nodeSelectors(agent), entryID)
	if e == nil {
		return proof{}, status.Error(codes.NotFound, "entry not found or not authorized")
	}
	want := e.SelectorSet()
	if len(want) == 0 {
		return proof{}, status.Error(codes.FailedPrecondition, "the entry has no selectors and matches nothing")
	}
	if missing := want.Missing(selectors.Derive(facts)); len(missing) > 0 {
		return proof{}, status.Errorf(codes.FailedPrecondition, "the evidence does not satisfy entry %s: missing %s", e.ID, strings.Join(missing.Strings(), ", "))
	}
	return proof{entry: e, agent: agent, facts: facts}, s.fresh(ctx, agent)
}

// issued records who was given what, and on how strong evidence.
func (p proof) issued(ctx context.Context, kind string, expires time.Time, more ...any) {
	more = append(more, "spiffe_id", p.entry.SPIFFEID, "entry", p.entry.ID, "agent", p.agent, "expires_at", expires)
	if f := p.facts; f != nil {
		more = append(more, "evidence", f.Tier.String(), "pid", f.Process.TGID, "exec_id", f.Process.ExecID, "boot_id", f.Process.BootID, "executable", f.Executable.Path, "sha256", f.Executable.SHA256)
	} else {
		more = append(more, "evidence", "none")
	}
	if p.policy != "" {
		more = append(more, "policy", p.policy)
	}
	gate.Log(ctx).Info(kind+" signed", more...)
}

// SignX509SVID signs for a process that the agent describes.
func (s *nodeService) SignX509SVID(ctx context.Context, req *nodev1.SignX509SVIDRequest) (*nodev1.SignX509SVIDResponse, error) {
	csr, err := wire.ReadCSR(req.Csr)
	if err != nil {
		return nil, err
	}
	p, err := s.prove(ctx, req.EntryId, req.Facts)
	if err != nil {
		return nil, err
	}
	chain, err := s.signX509(ctx, &p, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	return &nodev1.SignX509SVIDResponse{Svid: wire.SVID(p.entry.SPIFFEID, chain), PerProcess: p.perProcess}, nil
}

// SignJWTSVID signs for a process that the agent describes.
func (s *nodeService) SignJWTSVID(ctx context.Context, req *nodev1.SignJWTSVIDRequest) (*nodev1.SignJWTSVIDResponse, error) {
	p, err := s.prove(ctx, req.EntryId, req.Facts)
	if err != nil {
		return nil, err
	}
	token, err := s.signJWT(ctx, &p, req.Audience)
	return &nodev1.SignJWTSVIDResponse{Svid: wire.JWTSVID(p.entry.SPIFFEID, token)}, err
}

// SignWITSVID signs for a process that the agent describes and a key that it holds.
func (s *nodeService) SignWITSVID(ctx context.Context, req *nodev1.SignWITSVIDRequest) (*nodev1.SignWITSVIDResponse, error) {
	p, err := s.prove(ctx, req.EntryId, req.Facts)
	if err != nil {
		return nil, err
	}
	token, err := s.signWIT(ctx, &p, req.PublicKey, req.SigningAlgorithm)
	return &nodev1.SignWITSVIDResponse{Svid: wire.WITSVID(p.entry.SPIFFEID, token), PerProcess: p.perProcess}, err
}
