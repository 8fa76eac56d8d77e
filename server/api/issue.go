// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/rego"
)

// Policies are operators' own rules, beside those of the code. The zero value is none.
type Policies struct {
	// Authorization is asked of operators' calls; nil is not.
	Authorization *rego.Authorization
	// Replaces: it is asked in place of the table of methods, not beside it.
	Replaces bool
	// Issuance is asked of each SVID that an agent wants; nil is not. X509TTL and JWTTTL are what
	// SVIDs get whose entry names no time.
	Issuance        *rego.Issuance
	X509TTL, JWTTTL time.Duration
}

func (p Policies) gate() gate.Policy {
	return gate.Policy{Authorization: p.Authorization, Replaces: p.Replaces, Shown: wire.Shown}
}

// permit asks the issuance policy, once for each SVID that an agent wants, and returns how long it may live: at
// most the given time, 0 being the server's default. The proof takes down by which policy.
func (s *Server) permit(ctx context.Context, p *proof, kind string, ttl time.Duration, audience []string) (time.Duration, error) {
	policies := &s.cfg.Policies
	if policies.Issuance == nil {
		return ttl, nil
	}
	if ttl <= 0 {
		ttl = policies.X509TTL
		if kind == rego.JWT {
			ttl = policies.JWTTTL
		}
	}
	d, err := policies.Issuance.Decide(ctx, &rego.Request{Entry: p.entry, Facts: p.facts, Node: s.policyNode(p), Kind: kind, TTL: ttl, Audience: audience})
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return 0, status.FromContextError(ctx.Err()).Err()
	case errors.As(err, new(*rego.Denied)):
		return 0, status.Errorf(codes.PermissionDenied, "no %s SVID for entry %s: %v", kind, p.entry.ID, err)
	default:
		return 0, status.Errorf(codes.Internal, "no %s SVID for entry %s, because the policy has to be mended: %v", kind, p.entry.ID, err)
	}
	p.policy, p.perProcess = d.Digest, d.PerProcess
	return d.TTL, nil
}

func (s *Server) policyNode(p *proof) rego.Node {
	n := rego.Node{ID: p.agent}
	if known := s.cfg.Nodes.Get(p.agent); known != nil {
		n.State, n.AttestationType, n.Selectors, n.AttestedAt = string(known.State), known.AttestationType, known.Selectors, known.AttestedAt
		if known.TPM != nil {
			n.QuotedAt, n.Group = known.TPM.QuotedAt, known.TPM.Group
		}
	}
	return n
}
