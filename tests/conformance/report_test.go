// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// document holds our results, and beside them those of a SPIRE agent, which were made by hand.
const document = "../../docs/conformance.md"

// finish writes the report. After a run of all tests no point may be left out, and what the document
// says about us must be so.
func finish(passed, own bool) error {
	if *reportFlag != "" {
		if err := os.WriteFile(*reportFlag, []byte(report()), 0o644); err != nil {
			return err
		}
	}
	if flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.list").Value.String() != "" {
		return nil
	}
	var missing []string
	for _, r := range requirements {
		if _, ok := results.of[r.id]; !ok && r.outside == "" {
			missing = append(missing, r.id)
		}
	}
	switch {
	case passed && len(missing) > 0:
		return errors.New("no test asked for " + strings.Join(missing, ", "))
	case !own:
		return nil
	}
	return checkDocument(passed)
}

// became is what became of a point.
func became(r requirement) result {
	v := results.of[r.id]
	switch {
	case r.outside != "":
		return result{"–", "not testable from outside: " + r.outside}
	case v.state == "":
		return result{"not asked", "not run"}
	}
	return v
}

// report is a Markdown table of all points.
func report() string {
	var b strings.Builder
	count := map[string]int{}
	for _, r := range requirements {
		v := became(r)
		count[v.state]++
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.id, r.level, v.state, cell(r.text), cell(v.note))
	}
	return fmt.Sprintf("%s, %s, %d points: %s\n\n| id | level | result | requirement (our words) | note |\n|---|---|---|---|---|\n",
		*socketFlag, time.Now().UTC().Format(time.DateOnly), len(requirements), sum(count)) + b.String()
}

func sum(n map[string]int) string {
	return fmt.Sprintf("%d pass, %d fail, %d not asked, %d not testable from outside", n["pass"], n["FAIL"], n["not asked"], n["–"])
}

func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(s)
}

// checkDocument compares the document's table with what we found; -update writes it, with the
// results of another server from the report that -beside names, or those that stand there.
func checkDocument(passed bool) error {
	old, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	intro, _, found := strings.Cut(string(old), tableHead)
	if !found {
		return fmt.Errorf("%s has no table", document)
	}
	theirs := read(string(old), 3, 5)
	if *besideFlag != "" {
		other, err := os.ReadFile(*besideFlag)
		if err != nil {
			return err
		}
		theirs = read(string(other), 2, 4)
	}
	if text := intro + besides(theirs); text == string(old) {
		return nil
	} else if *updateFlag && passed {
		return os.WriteFile(document, []byte(text), 0o644)
	}
	return fmt.Errorf("%s does not say what this run found: run it with -args -update", document)
}

const tableHead = "| id | level | Assay | SPIRE | requirement (our words) | note |\n|---|---|---|---|---|---|\n"

// besides is the document's table, and below it the sums. What SPIRE answered follows the mark.
func besides(theirs map[string]result) string {
	var b strings.Builder
	b.WriteString(tableHead)
	ours, others := map[string]int{}, map[string]int{}
	for _, r := range requirements {
		mine, other := became(r), theirs[r.id]
		ours[mine.state]++
		others[other.state]++
		note := cell(mine.note)
		if other.note != "" && other.note != note {
			note = strings.TrimSpace(note + " " + mark + other.note)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.id, r.level, mine.state, other.state, cell(r.text), note)
	}
	fmt.Fprintf(&b, "\nOf %d points, Assay: %s. SPIRE: %s.\n", len(requirements), sum(ours), sum(others))
	return b.String()
}

// mark stands before what SPIRE's column has to say in a note.
const mark = "SPIRE: "

// read takes results from a table: their state and their note from these columns.
func read(text string, state, note int) map[string]result {
	out := map[string]result{}
	for line := range strings.Lines(text) {
		c := strings.Split(strings.Trim(strings.ReplaceAll(strings.TrimSpace(line), "\\|", "\x00"), "|"), "|")
		for i := range c {
			c[i] = strings.ReplaceAll(strings.TrimSpace(c[i]), "\x00", "\\|")
		}
		if len(c) > note && slices.ContainsFunc(requirements, func(r requirement) bool { return r.id == c[0] }) {
			text := c[note]
			if _, theirs, ok := strings.Cut(text, mark); ok {
				text = theirs
			}
			out[c[0]] = result{c[state], text}
		}
	}
	return out
}
