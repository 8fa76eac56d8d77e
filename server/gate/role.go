// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/selectors"
)

// Role lets callers who are no admins do some things to some entries, nodes and bundles. An empty
// list allows nothing.
type Role struct {
	Name string
	// IDs are who has the role.
	IDs []Pattern
	// Verbs are what he may do; see Verbs.
	Verbs []string
	// SPIFFEIDs, Parents and SelectorTypes bound entries: all three must hold. "*" is every type.
	SPIFFEIDs, Parents []Pattern
	SelectorTypes      []string
	// Nodes bound nodes, by their SPIFFE IDs.
	Nodes []Pattern
	// TrustDomains bound bundles and federation relationships, by name; "*" is every one.
	TrustDomains []string
}

// Verbs are those that there are.
func Verbs() []string { return slices.Compact(slices.Sorted(maps.Values(verbs))) }

// Pattern is a SPIFFE ID, or all that are below one.
type Pattern struct {
	id    spiffeid.ID
	below bool
}

// ParsePattern reads "spiffe://td/path", which is that one, or "spiffe://td/path/*", all below it.
func ParsePattern(text string) (Pattern, error) {
	text, below := strings.CutSuffix(text, "/*")
	id, err := spiffeid.FromString(text)
	if err != nil {
		return Pattern{}, fmt.Errorf("%q is no SPIFFE ID, nor one followed by /*: %w", text, err)
	}
	return Pattern{id, below}, nil
}

func (p Pattern) holds(id spiffeid.ID) bool {
	if !p.below {
		return id == p.id
	}
	return id.TrustDomain() == p.id.TrustDomain() && strings.HasPrefix(id.Path(), p.id.Path()+"/")
}

func anyHolds(ps []Pattern, id spiffeid.ID) bool {
	return slices.ContainsFunc(ps, func(p Pattern) bool { return p.holds(id) })
}

func listed(names []string, name string) bool {
	return slices.Contains(names, name) || slices.Contains(names, "*")
}

// Scope is what a caller may touch with the call that he makes.
type Scope struct {
	roles      []*Role // each allows the call
	privileged func(spiffeid.ID) bool
}

type scopeKey struct{}

// ScopeOf returns the scope of the call.
func ScopeOf(ctx context.Context) Scope {
	s, _ := ctx.Value(scopeKey{}).(Scope)
	return s
}

// All reports whether it has no bounds: the caller was let in for what he is, not for a role.
func (s Scope) All() bool { return s.roles == nil }

func (s Scope) within(what string, holds func(*Role) bool) error {
	if s.All() || slices.ContainsFunc(s.roles, holds) {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "%s is outside of what your role covers (role %s); ask an admin", what, s.roles[0].Name)
}

// Entry returns nil if the entry is within the scope. One that gives its holder power over the
// server never is.
func (s Scope) Entry(e *selectors.Entry) error {
	return s.within(fmt.Sprintf("the entry of %q below %q", e.SPIFFEID, e.ParentID), func(r *Role) bool {
		return anyHolds(r.SPIFFEIDs, e.SPIFFEID) && anyHolds(r.Parents, e.ParentID) && !e.Admin && !e.Downstream && !s.privileged(e.SPIFFEID) &&
			!slices.ContainsFunc(e.Selectors, func(sel selectors.Selector) bool { return !listed(r.SelectorTypes, sel.Type) })
	})
}

// Node returns nil if the node is within the scope.
func (s Scope) Node(id spiffeid.ID) error {
	return s.within(fmt.Sprintf("the node %q", id), func(r *Role) bool { return anyHolds(r.Nodes, id) })
}

// TrustDomain returns nil if bundles of the trust domain are within the scope.
func (s Scope) TrustDomain(td spiffeid.TrustDomain) error {
	return s.within(fmt.Sprintf("the trust domain %q", td.Name()), func(r *Role) bool { return listed(r.TrustDomains, td.Name()) })
}

// scoped returns the context of a call that a role of the caller's allows; false without one.
func (g *Gate) scoped(ctx context.Context, c Caller, method string) (context.Context, bool) {
	verb := verbs[method]
	if verb == "" || c.Cert == nil || g.cfg.Now().After(c.Cert.NotAfter) || g.cfg.Revoked(c.Cert) {
		return ctx, false
	}
	s := Scope{privileged: g.privileged}
	for _, r := range g.cfg.Scoped {
		if slices.Contains(r.Verbs, verb) && anyHolds(r.IDs, c.ID) {
			s.roles = append(s.roles, r)
		}
	}
	return context.WithValue(ctx, scopeKey{}, s), len(s.roles) > 0
}

// privileged reports whether the holder of an SVID of this ID is more than a workload.
func (g *Gate) privileged(id spiffeid.ID) bool {
	isAdmin, isDownstream := g.cfg.Roles(id)
	return isAdmin || isDownstream || g.named(id)
}

// named reports whether the configuration gives that ID power.
func (g *Gate) named(id spiffeid.ID) bool {
	return slices.Contains(g.cfg.AdminIDs, id) || slices.ContainsFunc(g.cfg.Scoped, func(r *Role) bool { return anyHolds(r.IDs, id) })
}
