// SPDX-License-Identifier: Apache-2.0

package selectors

// families are the derivations, in no significant order.
var families = [...]func(*Facts, func(family, value string)){
	deriveUnix, deriveExec, deriveLineage, deriveCgroup, deriveContainer, deriveProcess, deriveIntegrity, deriveHint, deriveEvidence,
}

// Derive turns facts into selectors. It is a pure function: the agent and the server get the
// same set from the same facts. Facts without evidence (no tier, or no exec id) yield nothing.
func Derive(f *Facts) Set {
	if f.Tier == TierNone || f.Process.ExecID == 0 {
		return nil
	}
	ss := make([]Selector, 0, 80)
	emit := func(family, value string) { ss = append(ss, Selector{Type: family, Value: value}) }
	for _, derive := range families {
		derive(f, emit)
	}
	return canonical(ss)
}
