// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// Issuance is a policy of which SVIDs are signed.
type Issuance struct{ *live }

// OpenIssuance reads the policy. Errors name the file and the line.
func OpenIssuance(cfg Config) (*Issuance, error) {
	l, err := open(cfg, issue)
	if err != nil {
		return nil, fmt.Errorf("issuance policy: %w", err)
	}
	return &Issuance{l}, nil
}

// The kinds of SVIDs, as policies name them.
const (
	X509 = "x509"
	JWT  = "jwt"
	WIT  = "wit"
)

// Request is what the policy is asked of.
type Request struct {
	Entry *selectors.Entry
	// Facts of the process, whose selectors the entry demands; nil where the agent may go without evidence.
	Facts *selectors.Facts
	Node  Node
	// Kind of the SVID: X509, JWT or WIT. TTL is what it gets if the policy says nothing.
	Kind     string
	TTL      time.Duration
	Audience []string // of JWT
}

// Node is the one whose agent asks.
type Node struct {
	ID spiffeid.ID
	// State is that of server/nodes, AttestationType of its last attestation.
	State, AttestationType string
	Selectors              selectors.Set
	AttestedAt             time.Time
	// QuotedAt is when its TPM last quoted, as far as that was written down; zero without a TPM.
	QuotedAt time.Time
	// Group of rules that it was judged by; "" for none.
	Group string
}

// Decision is a policy's yes.
type Decision struct {
	// TTL is at most the one asked for.
	TTL time.Duration
	// PerProcess: the yes is for this process only, and another one of the entry has to ask for
	// itself. It is so unless the policy says otherwise, and never without facts.
	PerProcess bool
	// Digest of the policy.
	Digest string
}

// Decide returns the policy's yes, or a *Denied, or why there is no answer.
func (i *Issuance) Decide(ctx context.Context, r *Request) (Decision, error) {
	p, now := i.present.Load(), i.cfg.Now()
	answer, err := p.ask(ctx, r.input(now), now, i.cfg.Timeout)
	if err != nil {
		return Decision{}, fmt.Errorf("issuance policy: %w", err)
	}
	res, err := readResult(answer)
	if err != nil {
		return Decision{}, fmt.Errorf("issuance policy: %w", err)
	}
	switch tier := r.tier(); {
	case res.deny != "":
		return Decision{}, &Denied{res.deny, p.digest}
	case !res.allow:
		return Decision{}, &Denied{"", p.digest}
	case tier < res.minimumTier:
		return Decision{}, &Denied{fmt.Sprintf("the evidence is of tier %s, and %s is demanded", tier, res.minimumTier), p.digest}
	}
	d := Decision{TTL: r.TTL, PerProcess: res.perProcess && r.Facts != nil, Digest: p.digest}
	if res.ttl > 0 {
		d.TTL = min(d.TTL, res.ttl)
	}
	return d, nil
}

func (r *Request) tier() selectors.Tier {
	if r.Facts == nil {
		return selectors.TierNone
	}
	return r.Facts.Tier
}

// result is data.assay.issue.result.
type result struct {
	allow       bool
	deny        string
	ttl         time.Duration // 0: not said
	minimumTier selectors.Tier
	perProcess  bool
}

// readResult reads what the query of issue answers. A field that we do not know is an error: it may be a demand.
func readResult(answer any) (result, error) {
	r := result{perProcess: true}
	fields, err := one(answer)
	if err != nil {
		return r, fmt.Errorf("assay.issue.result %w", err)
	}
	for name, v := range fields {
		if err := r.set(name, v); err != nil {
			return r, fmt.Errorf("assay.issue.result: %s", err)
		}
	}
	return r, nil
}

// longestTTL bounds what is read as a time, far above what an authority signs.
const longestTTL = 366 * 24 * time.Hour

func (r *result) set(name string, v any) (err error) {
	ok := true
	switch name {
	case "allow":
		r.allow, ok = v.(bool)
	case "per_process":
		r.perProcess, ok = v.(bool)
	case "deny":
		if r.deny, err = sentences(v); err != nil {
			return fmt.Errorf("deny %w", err)
		}
		if list, is := v.([]any); r.deny == "" && (!is || len(list) > 0) {
			r.deny = "no reason given"
		}
	case "ttl":
		seconds, is := integer(v)
		if !is || seconds < 1 || seconds > int64(longestTTL/time.Second) {
			return fmt.Errorf("ttl is %s; write whole seconds, at least 1", show(v))
		}
		r.ttl = time.Duration(seconds) * time.Second
	case "minimum_tier":
		text, _ := v.(string)
		if r.minimumTier, ok = selectors.ParseTier(text); !ok {
			return fmt.Errorf(`minimum_tier is %s; write "t1", "t2" or "t3"`, show(v))
		}
	default:
		return fmt.Errorf("%s is no field that the server knows; write allow, deny, ttl, minimum_tier and per_process", clean(name))
	}
	if !ok {
		return fmt.Errorf("%s is %s, not true or false", name, kindOf(v))
	}
	return nil
}
