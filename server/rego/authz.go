// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"context"
	"fmt"
	"time"
)

// Authorization is a policy of who may call what.
type Authorization struct{ *live }

// OpenAuthorization reads the policy. Errors name the file and the line.
func OpenAuthorization(cfg Config) (*Authorization, error) {
	l, err := open(cfg, authz, spire)
	if err != nil {
		return nil, fmt.Errorf("authorization policy: %w", err)
	}
	return &Authorization{l}, nil
}

// Call is what the policy is asked of.
type Call struct {
	// Kind is what the caller is, in one word: local, admin, downstream, role, node or other.
	Kind string
	// SPIFFEID of the caller; "" on the local socket.
	SPIFFEID string
	// User is who opened the local socket.
	User string
	// Local, Admin and Downstream are what the server knows him to be.
	Local, Admin, Downstream bool
	// Node: the SPIFFE ID is one of an agent.
	Node bool
	// Roles are the names of those that he has and that allow the call.
	Roles []string
	// Method in full, and the verb under which roles may allow it, or "".
	Method, Verb string
	// Request as JSON values, without secrets; nil for a stream.
	Request map[string]any
}

// Allow returns nil, or a *Denied, or why there is no answer.
func (a *Authorization) Allow(ctx context.Context, c *Call) error {
	p, now := a.present.Load(), a.cfg.Now()
	input, read := c.input(now), readAuthorization
	if p.question == spire {
		input, read = c.spireInput(), c.readSPIRE
	}
	answer, err := p.ask(ctx, input, now, a.cfg.Timeout)
	if err != nil {
		return fmt.Errorf("authorization policy: %w", err)
	}
	allowed, reason, err := read(answer)
	if err != nil {
		return fmt.Errorf("authorization policy: %w", err)
	}
	if allowed {
		return nil
	}
	return &Denied{reason, p.digest}
}

func (c *Call) input(now time.Time) map[string]any {
	caller := object{"kind": c.Kind, "local": c.Local, "admin": c.Admin, "downstream": c.Downstream, "node": c.Node, "roles": list(c.Roles)}
	caller.set("spiffe_id", c.SPIFFEID)
	caller.set("user", c.User)
	in := object{"caller": map[string]any(caller), "method": c.Method, "time": now.UTC().Format(time.RFC3339)}
	in.set("verb", c.Verb)
	if c.Request != nil {
		in["request"] = c.Request
	}
	return in
}

// spireInput is what SPIRE asks a policy (authpolicy.Input), but for caller_file_path.
func (c *Call) spireInput() map[string]any {
	return map[string]any{"caller": c.SPIFFEID, "full_method": c.Method, "req": c.Request}
}

// readAuthorization reads what the query of authz answers: each rule as a list, empty where it is not defined.
func readAuthorization(answer any) (allowed bool, reason string, err error) {
	m, _ := answer.(map[string]any)
	allow, isList := m["allow"].([]any)
	reasons, areList := m["reason"].([]any)
	if !isList || !areList {
		return false, "", fmt.Errorf("the answer is %s", kindOf(answer))
	}
	for _, v := range allow {
		var ok bool
		if allowed, ok = v.(bool); !ok {
			return false, "", fmt.Errorf("allow is %s, not true or false", kindOf(v))
		}
	}
	for _, v := range reasons {
		if reason, err = sentences(v); err != nil {
			return false, "", fmt.Errorf("reason %w", err)
		}
	}
	return allowed, reason, nil
}

// readSPIRE judges by the result of a policy of SPIRE's (doc/authorization_policy_engine.md).
func (c *Call) readSPIRE(answer any) (allowed bool, reason string, err error) {
	result, err := one(answer)
	if err != nil {
		return false, "", fmt.Errorf("spire.result %w", err)
	}
	is := map[string]bool{"allow": true, "allow_if_local": c.Local, "allow_if_admin": c.Admin, "allow_if_downstream": c.Downstream, "allow_if_agent": false}
	for name, v := range result {
		set, ok := v.(bool)
		holds, known := is[name]
		if !ok || !known {
			return false, "", fmt.Errorf("spire.result: %s is %s; write allow, allow_if_local, allow_if_admin, allow_if_downstream and allow_if_agent as true or false", clean(name), kindOf(v))
		}
		allowed = allowed || set && holds
	}
	return allowed, "", nil
}
