// SPDX-License-Identifier: Apache-2.0

// Package redteam attacks a real Assay: a server, an agent and its sensor, a registered victim,
// and attackers who want the victim's SVID delivered to something that is not the victim.
//
// The table of attacks is data (attacks.go); the test binary plays all the actors. What
// happened on each kernel is kept in testdata/results.txt, and docs/security/red-team.md is
// made of both.
package redteam

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Outcome is what became of an attack.
type Outcome string

// The outcomes. Only the last one is a success of the attacker.
const (
	// Refused: the agent refused the connection's caller, or the sensor its use.
	Refused Outcome = "refused"
	// NoIdentity: the caller was attested for what it is, which is nobody.
	NoIdentity Outcome = "no identity"
	// Denied: the kernel did not allow the means of the attack.
	Denied Outcome = "denied by the kernel"
	// Delivered: an SVID arrived where the attacker wanted it.
	Delivered Outcome = "delivered"
)

// Result is one attack on one kernel.
type Result struct {
	Kernel, Tier, ID string
	Outcome          Outcome
	// PeerCred is what an attestor by SO_PEERCRED and /proc did under the same attack.
	PeerCred Outcome
	// Evidence is the reason from the agent's log, or the error that the attacker got.
	Evidence string
}

// mark begins a result's line, in the results file and on a guest's serial line.
const mark = "REDTEAM "

func (r Result) String() string {
	return mark + strings.Join([]string{r.Kernel, r.Tier, r.ID, string(r.Outcome), string(r.PeerCred), r.Evidence}, " | ")
}

// ParseResult reads what String wrote; false if the line is no result.
func ParseResult(line string) (Result, bool) {
	_, rest, ok := strings.Cut(line, mark)
	f := strings.SplitN(rest, " | ", 6)
	if !ok || len(f) != 6 {
		return Result{}, false
	}
	return Result{f[0], f[1], f[2], Outcome(f[3]), Outcome(f[4]), f[5]}, true
}

// Column is a kernel and its tier: a column of the document.
type Column struct{ Kernel, Tier string }

// ReadResults returns the results in a file; none if there is no such file.
func ReadResults(path string) (results []Result, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("results of the red team: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if r, ok := ParseResult(lines.Text()); ok {
			results = append(results, r)
		}
	}
	return results, lines.Err()
}

// Select returns the results of one column by attack.
func Select(results []Result, c Column) map[string]Result {
	out := map[string]Result{}
	for _, r := range results {
		if r.Kernel == c.Kernel && r.Tier == c.Tier {
			out[r.ID] = r
		}
	}
	return out
}

// Update replaces the results of the columns that are in fresh, and writes results and
// document. root is the folder of the module.
func Update(root string, fresh []Result) error {
	path := root + "/" + ResultsFile
	old, err := ReadResults(path)
	if err != nil {
		return err
	}
	all := slices.DeleteFunc(old, func(r Result) bool {
		return slices.ContainsFunc(fresh, func(f Result) bool { return f.Kernel == r.Kernel && f.Tier == r.Tier })
	})
	all = append(all, fresh...)
	order := map[string]int{}
	for i, a := range Attacks {
		order[a.ID] = i
	}
	slices.SortStableFunc(all, func(a, b Result) int {
		return cmp.Or(cmp.Compare(b.Tier, a.Tier), cmp.Compare(a.Kernel, b.Kernel), cmp.Compare(order[a.ID], order[b.ID]))
	})
	var text strings.Builder
	for _, r := range all {
		text.WriteString(r.String() + "\n")
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("results of the red team: %w", err)
	}
	if err := os.WriteFile(root+"/"+DocumentFile, []byte(Document(all)), 0o644); err != nil {
		return fmt.Errorf("document of the red team: %w", err)
	}
	return nil
}

// Where results and document are, below the module's folder.
const (
	ResultsFile  = "tests/redteam/testdata/results.txt"
	DocumentFile = "docs/security/red-team.md"
)

// Compare tells how a run differs from what is committed for its column, one line for each.
func Compare(committed, run []Result) (differences []string) {
	if len(run) == 0 {
		return []string{"no results"}
	}
	old := Select(committed, Column{run[0].Kernel, run[0].Tier})
	for _, r := range run {
		was, ok := old[r.ID]
		switch {
		case !ok:
			differences = append(differences, fmt.Sprintf("%s: %s, and the document has no such row", r.ID, r.Outcome))
		case was.Outcome != r.Outcome:
			differences = append(differences, fmt.Sprintf("%s: %s (%s), the document says %s", r.ID, r.Outcome, r.Evidence, was.Outcome))
		case was.PeerCred != r.PeerCred:
			differences = append(differences, fmt.Sprintf("%s: SO_PEERCRED: %s, the document says %s", r.ID, r.PeerCred, was.PeerCred))
		}
	}
	return differences
}
