// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/gate"
)

// RoleConfig is a block `role "name"`: who may do what, to which. SPIFFE IDs end in /* to mean all
// below them. What is not written is not allowed.
//
//	role "payments" {
//	  ids            = ["spiffe://example.org/ops/ann", "spiffe://example.org/ci/*"]
//	  verbs          = ["entry.read", "entry.write", "node.read"]
//	  spiffe_ids     = ["spiffe://example.org/payments/*"]
//	  parents        = ["spiffe://example.org/spire/agent/tpm/*"]
//	  selector_types = ["unix", "exe"]
//	  nodes          = ["spiffe://example.org/spire/agent/tpm/*"]
//	}
type RoleConfig struct {
	Name string `hcl:"name,label"`
	// IDs are who has the role.
	IDs []string `hcl:"ids"`
	// Verbs: entry.read, entry.write, node.read, node.write, bundle.read, bundle.write.
	Verbs []string `hcl:"verbs"`
	// SPIFFEIDs, Parents and SelectorTypes (["*"] is all) bound the entries of entry.*: all three
	// must hold. An entry that makes an admin, a nested server or the holder of a role is never
	// within them.
	SPIFFEIDs     []string `hcl:"spiffe_ids,optional"`
	Parents       []string `hcl:"parents,optional"`
	SelectorTypes []string `hcl:"selector_types,optional"`
	// Nodes bounds node.*, by the nodes' SPIFFE IDs.
	Nodes []string `hcl:"nodes,optional"`
	// TrustDomains (["*"] is all) bounds bundle.*, which is about other trust domains only.
	TrustDomains []string `hcl:"trust_domains,optional"`
}

// RateLimitConfig is the block `ratelimit`. A caller beyond a limit waits, up to his deadline.
type RateLimitConfig struct {
	// Attestation is how many attestations one address may begin in a second (default 50, -1: any).
	Attestation int `hcl:"attestation,optional"`
	// Signing is how many SVIDs one node may have signed in a second (default 500, -1: any).
	Signing int `hcl:"signing,optional"`
}

const (
	attestationLimit = 50
	signingLimit     = 500 // SPIRE's; its agents send batches of so many
)

func (p *prepared) readCallers() error {
	for _, text := range p.AdminIDs {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return fmt.Errorf("admin_ids: %q is no SPIFFE ID: %w", text, err)
		}
		p.adminIDs = append(p.adminIDs, id)
	}
	for _, c := range p.Roles {
		r, err := c.read()
		if err != nil {
			return fmt.Errorf("role %q: %w", c.Name, err)
		}
		if slices.ContainsFunc(p.roles, func(o *gate.Role) bool { return o.Name == r.Name }) {
			return fmt.Errorf("role %q is there twice; name each differently", c.Name)
		}
		p.roles = append(p.roles, r)
	}
	p.limits = gate.Limits{Attestations: attestationLimit, Signatures: signingLimit}
	if c := p.RateLimit; c != nil {
		for _, l := range []struct {
			name string
			set  int
			to   *int
		}{{"attestation", c.Attestation, &p.limits.Attestations}, {"signing", c.Signing, &p.limits.Signatures}} {
			switch {
			case l.set < -1:
				return fmt.Errorf("ratelimit: %s %d: write a number per second, or -1 for no limit", l.name, l.set)
			case l.set == -1:
				*l.to = 0
			case l.set > 0:
				*l.to = l.set
			}
		}
	}
	return nil
}

func (c RoleConfig) read() (*gate.Role, error) {
	r := &gate.Role{Name: c.Name, Verbs: c.Verbs, SelectorTypes: c.SelectorTypes}
	for _, l := range []struct {
		name  string
		texts []string
		to    *[]gate.Pattern
	}{{"ids", c.IDs, &r.IDs}, {"spiffe_ids", c.SPIFFEIDs, &r.SPIFFEIDs}, {"parents", c.Parents, &r.Parents}, {"nodes", c.Nodes, &r.Nodes}} {
		for _, text := range l.texts {
			p, err := gate.ParsePattern(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			*l.to = append(*l.to, p)
		}
	}
	for _, name := range c.TrustDomains {
		if td, err := spiffeid.TrustDomainFromString(name); err == nil {
			name = td.Name()
		} else if name != "*" {
			return nil, fmt.Errorf("trust_domains: %q is no name of a trust domain: %w", name, err)
		}
		r.TrustDomains = append(r.TrustDomains, name)
	}
	return r, c.complete(r)
}

// complete refuses a role that could do nothing, which is surely not meant.
func (c RoleConfig) complete(r *gate.Role) error {
	if len(r.IDs) == 0 || len(r.Verbs) == 0 {
		return errors.New("write ids and verbs; without them it allows nobody anything")
	}
	for _, verb := range r.Verbs {
		if !slices.Contains(gate.Verbs(), verb) {
			return fmt.Errorf("there is no verb %q; write some of %s", verb, strings.Join(gate.Verbs(), ", "))
		}
		kind, _, _ := strings.Cut(verb, ".")
		missing := map[string]bool{
			"spiffe_ids, parents and selector_types": kind == "entry" && (len(r.SPIFFEIDs) == 0 || len(r.Parents) == 0 || len(r.SelectorTypes) == 0),
			"nodes":                                  kind == "node" && len(r.Nodes) == 0,
			"trust_domains":                          kind == "bundle" && len(r.TrustDomains) == 0,
		}
		for what, is := range missing {
			if is {
				return fmt.Errorf("%s needs %s, which say what it is allowed for", verb, what)
			}
		}
	}
	return nil
}
