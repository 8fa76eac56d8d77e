// SPDX-License-Identifier: Apache-2.0

package rego

import "testing"

// BenchmarkDecide: one question of the worked example, with facts of a usual process.
func BenchmarkDecide(b *testing.B) {
	i, err := OpenIssuance(config("testdata/issue", ""))
	if err != nil {
		b.Fatal(err)
	}
	bench(b, i)
}

// BenchmarkDecideSmall: the least that a policy can say.
func BenchmarkDecideSmall(b *testing.B) {
	bench(b, issuance(b, `result := {"allow": input.facts.tier == "t2", "ttl": 300}`))
}

func bench(b *testing.B, i *Issuance) {
	r := request("/prod/pay")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Decide(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAllow: one call of an operator.
func BenchmarkAllow(b *testing.B) {
	a, err := OpenAuthorization(config("testdata/authz", ""))
	if err != nil {
		b.Fatal(err)
	}
	c := &Call{Kind: "admin", SPIFFEID: "spiffe://example.org/ops", Admin: true, Method: "/spire.api.server.entry.v1.Entry/GetEntry", Verb: "entry.read", Request: map[string]any{"id": "x"}}
	b.ReportAllocs()
	for b.Loop() {
		if err := a.Allow(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}
