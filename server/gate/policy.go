// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/rego"
)

// Policy is an operator's own rule of who may call what. It is asked of operators' and nested servers'
// calls; what agents and anyone may call is not its business, so that no slip in it can lock the
// nodes out.
type Policy struct {
	// Authorization is asked; nil is no policy.
	Authorization *rego.Authorization
	// Replaces: for methods of operators it is asked in place of the table, and of the local socket, too.
	// Otherwise both must allow, and the local socket, whose users can change the policy, is not asked about.
	Replaces bool
	// Shown returns what the policy sees of a request.
	Shown func(req any) (map[string]any, error)
}

// asked reports whether the policy has a say in a call that the table let in as what `as` says (0: for a
// role) or, with refused, did not let in.
func (p *Policy) asked(c Caller, method string, as access, refused bool) bool {
	of := permissions[method]
	switch {
	case p.Authorization == nil || of&(admin|downstream) == 0 || as == agent:
		return false
	case refused:
		return p.Replaces && of&operators != 0
	}
	return p.Replaces || !c.local
}

// ask asks the policy of a call. refusal is the table's, nil if it let the caller in. No policy
// lets in who showed no certificate, or an old one.
func (g *Gate) ask(ctx context.Context, c Caller, method string, req any, as access, refusal error) error {
	p := &g.cfg.Policy
	if !p.asked(c, method, as, refusal != nil) || refusal != nil && !c.local && (c.Cert == nil || g.cfg.Now().After(c.Cert.NotAfter)) {
		return refusal
	}
	call, err := g.call(ctx, c, method, req)
	if err != nil {
		return err
	}
	err = p.Authorization.Allow(ctx, call)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.As(err, new(*rego.Denied)):
		return status.Errorf(codes.PermissionDenied, "%s: %v", denied(method).Error(), err)
	}
	return status.Errorf(codes.Internal, "the call can not be judged, because the policy has to be mended: %v", err)
}

// call is what the policy is told.
func (g *Gate) call(ctx context.Context, c Caller, method string, req any) (*rego.Call, error) {
	is := g.roles(c)
	call := &rego.Call{
		Kind: "other", Local: c.local, User: c.user, Admin: is&admin != 0, Downstream: is&downstream != 0,
		Method: method, Verb: verbs[method],
	}
	for _, r := range ScopeOf(ctx).roles {
		call.Roles = append(call.Roles, r.Name)
	}
	if c.Cert != nil {
		call.SPIFFEID, call.Node = c.ID.String(), strings.HasPrefix(c.ID.Path(), "/spire/agent/")
	}
	for _, k := range []struct {
		is   bool
		kind string
	}{{call.Node, "node"}, {len(call.Roles) > 0, "role"}, {call.Downstream, "downstream"}, {call.Admin, "admin"}, {c.local, "local"}} {
		if k.is {
			call.Kind = k.kind // the last one that he is
		}
	}
	if req == nil {
		return call, nil // a stream
	}
	var err error
	call.Request, err = g.cfg.Policy.Shown(req)
	return call, err
}
